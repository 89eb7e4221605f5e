# A model: init() reads the coefficients once, predict() answers a request.
#
# This starter is a straight line. Replace its body, coefficients/line.csv and the examples in model.yml
# with your own; keep the names init and predict. If the model needs packages, list them in a packages.txt
# beside this file, one a line. Inside these functions predict(model, newdata) is R's own.

line <- NULL

# Run once, before the first request. The working directory is this folder.
init <- function() {
  line <<- read.csv("coefficients/line.csv")
}

# Answer one request: a string for a string. An error here is the caller's status 500, with its message.
predict <- function(request) {
  x <- suppressWarnings(as.numeric(request))
  if (is.na(x)) stop("not a number: ", request, call. = FALSE)
  as.character(line$slope * x + line$intercept)
}
