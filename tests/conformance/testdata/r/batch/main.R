predict <- function(request) {
  if (request == "bad") stop("bad")
  paste("one", request)
}

predict_batch <- function(requests) {
  if ("bad" %in% requests) stop("bad in batch")
  paste(length(requests), requests)
}
