# testdata/faults in R: a model that does whatever a request tells it to, VERB ARGUMENT.

ready <- FALSE
line <- NULL
chance <- NULL

init <- function() {
  cat(Sys.getpid(), "\n", sep = "", file = Sys.getenv("INIT_LOG"), append = TRUE)
  # Models of R's own, whose predict is not the one below.
  line <<- lm(dist ~ speed, cars)
  chance <<- glm(am ~ wt, binomial, mtcars)
  # A bare generator in a known state, which every worker would go on from.
  set.seed(1)
  runif(1)
  ready <<- TRUE
}

note <- function(text) cat(text, "\n", sep = "", file = Sys.getenv("NOTES"), append = TRUE)

# A class of the model's own, with its method.
predict.doubler <- function(object, newdata, ...) object$by * newdata

kill <- function(number) {
  tools::pskill(Sys.getpid(), number)
  Sys.sleep(60)
}

verbs <- list(
  echo = function(argument) argument,
  note = function(argument) {
    parts <- strsplit(argument, " ")[[1]]
    note(parts[1])
    Sys.sleep(as.numeric(parts[2]))
    argument
  },
  sleep = function(argument) {
    Sys.sleep(as.numeric(argument))
    argument
  },
  loop = function(argument) {
    child <- system("sleep 300 >/dev/null 2>&1 & echo $!", intern = TRUE)
    note(paste(Sys.getpid(), child))
    repeat {}
  },
  sigsegv = function(argument) {
    system(paste("kill -SEGV", Sys.getpid()))
    Sys.sleep(60)
  },
  sigkill = function(argument) kill(9L),
  exit = function(code) quit(status = as.integer(code)),
  quit = function(argument) q("no", 3),
  pid = function(argument) as.character(Sys.getpid()),
  cwd = function(argument) getwd(),
  chdir = function(argument) {
    setwd("/")
    getwd()
  },
  lines = function(argument) {
    for (n in seq_len(as.integer(argument))) cat("line", n, strrep("x", 1000), "\n")
    "printed"
  },
  stderr = function(argument) {
    message(argument)
    "said"
  },
  warn = function(argument) {
    warning("careful: ", argument)
    "warned"
  },
  print = function(argument) {
    print(argument)
    "printed"
  },
  big = function(size) strrep("ü", as.integer(size)),
  none = function(argument) NULL,
  int = function(argument) 7L,
  missing = function(argument) NA_character_,
  two = function(argument) c("a", "b"),
  factor = function(argument) factor("a"),
  bytes = function(argument) as.raw(1:3),
  latin1 = function(argument) iconv("grün", "UTF-8", "latin1"),
  broken = function(argument) rawToChar(as.raw(c(0x68, 0xff, 0xfe))),
  raise = function(argument) stop("Schlüssel ☃ fehlt: ", argument),
  condition = function(argument) stop(structure(class = c("no_such_plant", "error", "condition"),
                                                list(message = argument, call = NULL))),
  deep = function(argument) verbs$deep(argument),
  toplevel = function(argument) invokeRestart("abort"),
  close_connections = function(argument) {
    closeAllConnections()
    "closed"
  },
  tempdir = function(argument) as.character(file.exists(tempdir())),
  random = function(argument) sprintf("%.12f", runif(1)),
  seeded = function(argument) {
    set.seed(as.integer(argument))
    sprintf("%.6f", runif(1))
  },
  lm = function(speed) sprintf("%.4f", predict(line, data.frame(speed = as.numeric(speed)))),
  glm = function(wt) sprintf("%.4f", predict(chance, newdata = data.frame(wt = as.numeric(wt)), type = "response")),
  own = function(number) as.character(predict(structure(list(by = 2), class = "doubler"), as.numeric(number))),
  again = function(request) paste("again", predict(request)),
  chars = function(argument) paste(nchar(argument), toupper(argument))
)

predict <- function(request) {
  stopifnot(ready)
  verb <- sub(" .*", "", request)
  verbs[[verb]](sub("^[^ ]* ?", "", request))
}
