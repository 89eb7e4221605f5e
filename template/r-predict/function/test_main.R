# The model's test: faas-cli build runs it. By hand: Rscript test_main.R in this folder.

model <- new.env()
sys.source("main.R", model)
model$init()

stopifnot(
  model$predict("0") == "1",
  model$predict("10") == "21",
  inherits(try(model$predict("ten"), silent = TRUE), "try-error")
)
