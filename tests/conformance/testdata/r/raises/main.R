init <- function() stop("the coefficients are missing: ☃")

predict <- function(request) request
