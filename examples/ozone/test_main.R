# The model's test. In this folder: Rscript test_main.R

model <- new.env()
sys.source("main.R", model)
model$init()

fails <- function(request, says) {
  text <- suppressWarnings(tryCatch(model$predict(request), error = conditionMessage))
  if (!grepl(says, text, fixed = TRUE)) stop("'", request, "' gives '", text, "', not '", says, "'")
}

# What R's own predict makes of a fit to the same data.
days <- na.omit(airquality[c("Ozone", "Solar.R", "Wind", "Temp")])
fit <- glm(Ozone ~ Solar.R + Wind + Temp, family = Gamma("log"), data = days)
requests <- with(days, paste(Solar.R, Wind, Temp, sep = ","))
expected <- sprintf("%.1f", fitted(fit))
stopifnot(identical(vapply(requests, model$predict, "", USE.NAMES = FALSE), expected))
stopifnot(identical(model$predict_batch(requests), expected))

fails("190,7.4", "got 2")
fails("190,calm,67", "wind is not a finite number: 'calm'")
fails("190,7.4,Inf", "temperature is not a finite number")
cat("ok\n")
