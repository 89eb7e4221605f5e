# Fits coefficients/ozone.csv and prints how good it is. In this folder: Rscript train.R
#
# Data: airquality, which comes with R: daily readings in New York, May to September 1973
# (New York State Department of Conservation and the National Weather Service; Chambers et al., 1983).

days <- na.omit(airquality[c("Ozone", "Solar.R", "Wind", "Temp")])
formula <- Ozone ~ Solar.R + Wind + Temp

# Concentrations are positive and scatter more where they are high, which is what a gamma
# distribution with a logarithmic link says. A straight line would answer less than zero.
fit_to <- function(days) glm(formula, family = Gamma("log"), data = days)

# Each day is predicted by a fit to the others.
left_out <- vapply(seq_len(nrow(days)), function(day) {
  stats::predict(fit_to(days[-day, ]), days[day, ], type = "response")
}, 0)
straight <- vapply(seq_len(nrow(days)), function(day) {
  stats::predict(lm(formula, days[-day, ]), days[day, ])
}, 0)

off <- function(predicted) mean(abs(predicted - days$Ozone))
explained <- function(predicted) {
  1 - sum((predicted - days$Ozone)^2) / sum((days$Ozone - mean(days$Ozone))^2)
}
cat(sprintf("%d days\n", nrow(days)))
cat(sprintf("mean absolute error, each day left out: %.1f ppb (always the mean: %.1f, straight line: %.1f)\n",
            off(left_out), off(mean(days$Ozone)), off(straight)))
cat(sprintf("explained variance: %.2f (straight line: %.2f)\n", explained(left_out), explained(straight)))

fit <- fit_to(days)
table <- data.frame(term = names(coef(fit)), coefficient = sprintf("%.10g", coef(fit)))
write.csv(table, "coefficients/ozone.csv", row.names = FALSE, quote = FALSE)
