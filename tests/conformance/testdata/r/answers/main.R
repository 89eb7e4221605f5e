# What every conformance case asks of a model: VERB ARGUMENT.

init <- function() {
  cat("init\n", file = Sys.getenv("CONFORMANCE_INITS"), append = TRUE)
  print_line("init was here")
}

print_line <- function(text) cat(text, "\n", sep = "")

fail <- function(argument) stop(argument)

verbs <- list(
  echo = function(argument) argument,
  `repeat` = function(count) strrep("ü", as.integer(count)),
  fail = function(argument) fail(argument),
  number = function(argument) 7,
  say = function(argument) {
    print_line(argument)
    "said"
  },
  complain = function(argument) {
    message(argument)
    "complained"
  },
  nap = function(milliseconds) {
    Sys.sleep(as.integer(milliseconds) / 1000)
    "rested"
  },
  exit = function(code) quit(status = as.integer(code)),
  kill = function(number) {
    tools::pskill(Sys.getpid(), as.integer(number))
    Sys.sleep(60)
  },
  child = function(argument) system("sleep 300 >/dev/null 2>&1 & echo $!", intern = TRUE),
  leave = function(directory) {
    setwd(directory)
    "gone"
  },
  where = function(argument) getwd()
)

predict <- function(request) {
  verb <- sub(" .*", "", request)
  argument <- sub("^[^ ]* ?", "", request)
  verbs[[verb]](argument)
}
