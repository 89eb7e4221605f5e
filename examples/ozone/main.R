# Ozone in the air of New York from the day's weather: a gamma regression with a logarithmic link.
#
# Request: "solar radiation in langleys,wind in mph,highest temperature in degrees Fahrenheit".
# Response: ozone in parts per billion, with one decimal.

terms <- c("solar radiation", "wind", "temperature")
coefficients <- NULL

init <- function() {
  table <- read.csv("coefficients/ozone.csv")
  coefficients <<- table$coefficient[match(c("(Intercept)", "Solar.R", "Wind", "Temp"), table$term)]
  stopifnot(!anyNA(coefficients))
}

# strsplit leaves out an empty field at the end; with one more comma there is none.
split <- function(requests) strsplit(paste0(requests, ","), ",", fixed = TRUE)

predict <- function(request) {
  x <- as.numeric(split(request)[[1]])
  if (length(x) != 3 || !all(is.finite(x))) refuse(request)
  sprintf("%.1f", exp(coefficients[1] + coefficients[2] * x[1] + coefficients[3] * x[2] + coefficients[4] * x[3]))
}

# R works on whole vectors at little more than the cost of one number, so a stream's rows go through
# together. A row that is not good makes it stop, and each is then asked of predict.
predict_batch <- function(requests) {
  fields <- split(requests)
  x <- as.numeric(unlist(fields))
  if (any(lengths(fields) != 3) || !all(is.finite(x))) stop("a row is not three finite numbers")
  x <- matrix(x, nrow = 3)
  sprintf("%.1f", exp(coefficients[1] + coefficients[2] * x[1, ] + coefficients[3] * x[2, ] + coefficients[4] * x[3, ]))
}

# Says which rule the request breaks. Slow, so only called when it does.
refuse <- function(request) {
  fields <- split(request)[[1]]
  if (length(fields) != 3) {
    stop("expected 3 comma-separated numbers (", paste(terms, collapse = ", "), "), got ", length(fields), call. = FALSE)
  }
  bad <- which(!is.finite(suppressWarnings(as.numeric(fields))))[1]
  stop(terms[bad], " is not a finite number: '", fields[bad], "'", call. = FALSE)
}
