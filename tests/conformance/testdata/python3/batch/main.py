def predict(request):
    if request == "bad":
        raise ValueError("bad")
    return "one " + request


def predict_batch(requests):
    if "bad" in requests:
        raise ValueError("bad in batch")
    return [f"{len(requests)} {request}" for request in requests]
