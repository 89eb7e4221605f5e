def init():
    raise RuntimeError("the coefficients are missing: ☃")


def predict(request):
    return request
