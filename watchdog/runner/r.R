# The R runner: runs a bundle's main.R, its init() once, and forks workers that call predict().
#
# It speaks docs/runner-protocol.md with the watchdog that started it, with what comes with R and nothing
# else. R has no setpgid, waitpid, prctl or poll, and that shapes the processes:
#
#   keeper    what the watchdog started. It runs init, since the kernel ends it with the watchdog, and from
#             then on only waits for the zygote.
#   zygote    the keeper's fork after init. The kernel no longer ends it, so its channel can tell it to end
#             the workers first.
#   nurse     one a worker, forked by the zygote: it forks the worker and waits for it, which is the only
#             way to learn how it ended.
#   worker    calls predict. It leads a session, and with it a process group, of its own.
#
# Everything stands in an environment below base, so that neither the model nor a package can replace what
# the runner calls, and the global environment is the model's alone.
#
# Arguments: BUNDLE ENTRY START_METHOD CHANNELS JOURNAL_FD

local({
  WIRE_VERSION <- 1L
  HEADER <- 24L
  FORK <- 1L; KILL <- 2L
  HELLO <- 16L; READY <- 17L; INIT_FAILED <- 18L; FORKED <- 19L; EXITED <- 20L
  REQUEST <- 32L; WITH_MORE <- REQUEST + 256L; WITH_HOLD <- REQUEST + 512L # kind and flags as one number
  RUN <- 33L; PADDED <- 1024L
  UP <- 48L; RESPONSE <- 49L; RAISED <- 50L; NOT_STRING <- 51L; SKIPPED <- 52L

  # The journal: one slot of SLOT bytes a worker, its words first, its answers from AREA on.
  SLOT <- 131072L
  AREA <- 64L

  # What serve is at.
  IDLE <- 0L; READ <- 1L; PREDICT <- 2L; CHECK <- 3L; ANSWER <- 4L; BATCH <- 5L

  NO_UTF8 <- "a string that has no UTF-8"

  # Calls in a traceback: of an endless recursion those at both ends.
  TRACEBACK <- 60

  swap <- .Platform$endian == "big"
  sigkill <- 9L

  # C functions without arguments, or with one pointer, can be called from R; these are all it takes.
  libc <- function() {
    mapped <- readLines("/proc/self/maps")
    path <- sub("^[^/]*", "", grep("/libc[.-][^/]*$|/ld-musl[^/]*$", mapped, value = TRUE))
    dll <- dyn.load(path[1L])
    lapply(c(fork = "fork", setsid = "setsid", wait = "wait"),
           function(name) getNativeSymbolInfo(name, dll)$address)
  }

  # mckill passes on negative numbers, which mean a group; tools::pskill does not.
  signal <- function(pid, number) {
    process <- structure(list(pid = as.integer(pid)), class = "process")
    tryCatch(isTRUE(parallel:::mckill(process, number)), error = function(e) FALSE)
  }

  alive <- function(pid) signal(pid, 0L)

  # Whatever locale the watchdog runs in, requests are UTF-8 and so is what the model prints.
  speak_utf8 <- function() {
    for (name in c("C.UTF-8", "C.utf8", "en_US.UTF-8", "")) {
      if (l10n_info()[["UTF-8"]]) break
      suppressWarnings(Sys.setlocale("LC_CTYPE", name))
    }
  }

  utf8 <- function(text) {
    bytes <- tryCatch(enc2utf8(text), error = function(e) text)
    if (!validUTF8(bytes)) bytes <- iconv(text, "latin1", "UTF-8", sub = "byte")
    bytes
  }

  # Ends that a program which the model executes does not inherit: e is O_CLOEXEC. They have a buffer of C's:
  # a read returns when it has what it is for, and asks the kernel only when the buffer is empty.
  read_end <- function(path) file(path, "reb", raw = TRUE, blocking = TRUE)
  write_end <- function(path) file(path, "web", raw = TRUE, blocking = TRUE)

  int32 <- function(number) if (number >= 2147483648) as.integer(number - 4294967296) else as.integer(number)

  as_halves <- function(number) c(int32(number %% 4294967296), as.integer(number %/% 4294967296))

  # An id is its two halves, the low one first.
  frame <- function(kind, id, elapsed, payload) {
    c(writeBin(c(length(payload), kind, id, as_halves(elapsed)), raw(), endian = "little"), payload)
  }

  # On a channel that several processes write to, one write is one frame: all of these are short.
  send <- function(channel, kind, id = c(0L, 0L), elapsed = 0, payload = raw()) {
    writeBin(frame(kind, id, elapsed, payload), channel)
    flush(channel)
  }

  # The calls between the runner's own and the one that raised, innermost first, as traceback() shows
  # them. depth is that of the function which called withCallingHandlers.
  show_calls <- function(calls, depth) {
    heads <- vapply(calls, function(call) {
      head <- if (is.call(call)) call[[1L]]
      if (is.name(head)) as.character(head) else if (is.function(head)) "h" else "" # h: a handler's call
    }, "")
    own <- match(TRUE, heads == "withCallingHandlers" & seq_along(calls) > depth, nomatch = depth)
    while (own < length(calls) && (heads[own + 1L] == "load_model" || # and what it evaluates by
             heads[own + 1L] == "eval" && identical(calls[[own + 1L]], quote(eval(expression, globalenv()))))) {
      own <- own + 1L
    }
    calls <- calls[seq_along(calls) > own]
    heads <- heads[seq_along(heads) > own]
    ours <- heads %in% c(".handleSimpleError", "h", "note") | (heads == "signalCondition")
    calls <- calls[seq_along(calls) < min(which(ours), length(calls) + 1L)]
    if (!length(calls)) return(character())
    skipped <- max(0L, length(calls) - TRACEBACK)
    calls <- calls[c(seq_len(min(length(calls), TRACEBACK / 2)), if (length(calls) > TRACEBACK / 2)
      (max(TRACEBACK / 2, length(calls) - TRACEBACK / 2) + 1):length(calls))]
    lines <- vapply(seq_along(calls), function(i) {
      text <- paste(deparse(calls[[i]], nlines = 2L), collapse = " ")
      if (nchar(text) > 120L) text <- paste0(substr(text, 1L, 117L), "...")
      at <- attr(calls[[i]], "srcref")
      if (!is.null(at)) {
        text <- paste0(text, " at ", basename(attr(at, "srcfile")$filename), "#", at[1L])
      }
      paste0(if (i > TRACEBACK / 2) i + skipped else i, ": ", text)
    }, "")
    rev(lines)
  }

  message_of <- function(condition) {
    text <- tryCatch(paste(conditionMessage(condition), collapse = "\n"),
                     error = function(e) "(its message could not be read)")
    utf8(text)
  }

  # What Rscript prints of an error, and below it where it came from.
  explain <- function(condition, lines) {
    call <- tryCatch(conditionCall(condition), error = function(e) NULL)
    where <- if (!is.null(call)) paste0(" in ", paste(deparse(call, nlines = 1L), collapse = " "), " :")
    paste(c(paste0("Error", if (is.null(where)) ":" else where, " ", message_of(condition)),
            "Traceback (innermost first):", if (length(lines)) lines else "(none is known)"), collapse = "\n")
  }

  # The payload of RAISED: type, message and traceback, separated by NUL.
  describe <- function(condition, lines) {
    c(charToRaw(utf8(class(condition)[1L])), as.raw(0L), charToRaw(message_of(condition)), as.raw(0L),
      charToRaw(utf8(explain(condition, lines))))
  }

  # What predict returned, in words; NULL when it is a string.
  unfit <- function(result) {
    if (is.null(result)) return("NULL")
    if (!is.character(result)) {
      return(paste0(class(result)[1L], " of length ", length(result)))
    }
    if (length(result) != 1L) return(paste("a character vector of length", length(result)))
    if (is.na(result)) return("NA")
    marked <- Encoding(result)
    if (marked != "latin1" && !validUTF8(result)) return(NO_UTF8)
    NULL
  }

  holds_nul <- function() simpleError("the request holds a NUL byte, which a string in R cannot")

  # Functions of base that would end or unsettle more than the worker.
  move_noted_in <- new.env() # whose variable moved says that the model has left the bundle's folder
  go_to <- NULL # setwd, without noting it
  replace_base <- function(name, with) {
    base <- baseenv()
    unlockBinding(name, base)
    assign(name, with, envir = base)
    lockBinding(name, base)
  }
  keep_worker_apart <- function() {
    # R's own quit removes the temporary folder that all workers share.
    leave <- function(save = "default", status = 0, runLast = TRUE) parallel:::mcexit(as.integer(status))
    replace_base("quit", leave)
    replace_base("q", leave)
    real_setwd <- setwd
    replace_base("setwd", function(dir) {
      assign("moved", TRUE, envir = move_noted_in)
      real_setwd(dir)
    })
    # Ours are connections too.
    replace_base("closeAllConnections", function() {
      while (sink.number() > 0L) sink()
      open <- showConnections()
      for (n in rownames(open)[!startsWith(open[, "description"], channels)]) close(getConnection(as.integer(n)))
      invisible()
    })
    real_setwd
  }

  # Loads the bundle. Its predict becomes the method of stats::predict for strings and is no variable any
  # more: so predict(fit, newdata) means what it means everywhere in R, and predict("a request") still
  # asks the model.
  load_model <- function(entry) {
    for (expression in parse(entry, keep.source = TRUE, encoding = "UTF-8")) eval(expression, globalenv())
    defines <- function(name) exists(name, globalenv(), mode = "function", inherits = FALSE)
    if (!defines("predict")) stop(entry, " does not define predict(request)", call. = FALSE)
    predict <- get("predict", globalenv(), mode = "function", inherits = FALSE)
    rm("predict", envir = globalenv())
    registerS3method("predict", "character", predict, envir = asNamespace("stats"))
    if (defines("init")) {
      init <- get("init", globalenv(), mode = "function", inherits = FALSE)
      init()
    }
    # Compiled here once, and not in each worker when it gets to it.
    for (name in ls(globalenv(), all.names = TRUE)) {
      value <- get(name, globalenv())
      if (typeof(value) == "closure" && identical(environment(value), globalenv()) &&
            !bindingIsLocked(name, globalenv()) && !bindingIsActive(name, globalenv())) {
        try(assign(name, compiler::cmpfun(value), envir = globalenv()), silent = TRUE)
      }
    }
    batch <- if (defines("predict_batch")) get("predict_batch", globalenv(), mode = "function", inherits = FALSE)
    list(predict = tryCatch(compiler::cmpfun(predict), error = function(e) predict), batch = batch)
  }

  # load_model, or the text that says why not.
  try_model <- function(entry) {
    lines <- character()
    depth <- length(sys.calls())
    tryCatch(
      withCallingHandlers(load_model(entry), error = function(e) lines <<- show_calls(sys.calls(), depth)),
      error = function(e) utf8(explain(e, lines)))
  }

  capabilities <- function(model, journal) {
    charToRaw(sprintf('{"batch": %s, "journal": %s, "runs": true}', tolower(!is.null(model$batch)), tolower(journal)))
  }

  # The journal as memory: R maps a file as a vector, which assignment changes in place while nothing else
  # refers to it. Whether it does is tried, since it is no promise of R's.
  maps_memory <- function(path, slot) {
    tryCatch({
      words <- .Internal(mmap_file(path, "double", TRUE, TRUE, FALSE))
      ints <- .Internal(mmap_file(path, "integer", TRUE, TRUE, FALSE))
      at <- slot * (SLOT %/% 8L) + 7L # a word of the slot that means nothing
      ints[2L * at + 1L] <- 81985529L
      ints[2L * at + 2L] <- 7L
      words[at + 1L] <- words[at + 1L]
      seen <- readBin(writeBin(words[at + 1L], raw()), "integer", 2L)
      words[at + 1L] <- 0
      identical(seen, c(81985529L, 7L)) && ints[2L * at + 1L] == 0L && length(words) >= (slot + 1L) * (SLOT %/% 8L)
    }, error = function(e) FALSE)
  }

  # The hot path. Every call in it that is not needed shows: .Internal is what the function of the same name
  # calls, less its checks, and what a loop does not need stands in functions of its own, because R's bytecode
  # finds the variables of a short piece of code faster. Answers to requests with HOLD stay in the journal
  # until one without it.
  serve <- function(model, requests, replies, journal_path, slot, home, go, utf8_locale) {
    force(home) # before predict goes elsewhere
    if (is.null(journal_path)) {
      # Claims go nowhere.
      slot <- 0L
      words <- numeric(AREA %/% 8L)
      ints <- rep(-1L, AREA %/% 4L)
    } else {
      # Mapped here, where nothing else can refer to the vectors.
      words <- .Internal(mmap_file(journal_path, "double", TRUE, TRUE, FALSE))
      ints <- .Internal(mmap_file(journal_path, "integer", TRUE, TRUE, FALSE))
    }
    claimed <- slot * (SLOT %/% 8L) + 3L
    low <- slot * (SLOT %/% 4L) # later: the other half of the last id
    generation <- low + 1L
    committed <- low + 3L
    claimed_low <- low + 5L
    revoked <- low + 7L
    revoked_high <- low + 8L
    area <- low + AREA %/% 4L + 1L

    no_bytes <- raw()
    filler <- raw(3L)
    free <- area # the first integer of it that is not filled
    # The last that a header may start at; none where no answer stays. A big-endian machine's integers are not
    # the wire's.
    room <- if (is.null(journal_path) || swap) 0L else low + SLOT %/% 4L - 6L
    began <- ended <- .Internal(Sys.time())
    elapsed <- 0
    lines <- character()
    head <- table <- integer(6L) # the headers of the requests that are read, one behind the other
    texts <- ""
    at <- last <- 0L # of the requests that are read: how many were begun, and how many there are
    cut <- FALSE
    high <- -1L # half of the last id
    request <- result <- failure <- ""
    payload <- answer <- no_bytes
    kind <- word <- size <- count <- took <- took_high <- 0L
    state <- IDLE
    depth <- length(sys.calls())
    moved <- FALSE
    move_noted_in <<- environment()
    predict <- model$predict # last, which is where R looks first

    repeat {
      failure <- tryCatch(withCallingHandlers({
        repeat {
          if (state == IDLE) {
            if (at == last) {
              # Length, kind and flags, both halves of the id, elapsed.
              head <- .Internal(readBin(requests, "integer", 6L, NA_integer_, TRUE, swap))
              if (length(head) < 6L) return(invisible())
              at <- 0L
              if (head[2L] == RUN || head[2L] == WITH_MORE) {
                run <- read_run(requests, head)
                if (is.null(run)) return(invisible())
                table <- run$table
                texts <- run$texts
                last <- length(texts)
              } else {
                table <- head
                texts <- .Internal(readChar(requests, head[1L], TRUE))
                last <- 1L
              }
              cut <- any(.Internal(nchar(texts, "bytes", FALSE, FALSE)) != table[6L * seq_len(last) - 5L]) # R does at a NUL byte
              if (!utf8_locale) texts <- .Internal(setEncoding(texts, "UTF-8"))
            }
            request <- texts[at + 1L]
            word <- table[6L * at + 2L]
            # Claim, then look for a revocation. An id is written whole, or half when the other half stays.
            low <- table[6L * at + 3L]
            if (table[6L * at + 4L] == high) {
              ints[claimed_low] <- low
            } else {
              high <- table[6L * at + 4L]
              words[claimed] <- as_word(c(low, high))
            }
            at <- at + 1L
            if (ints[revoked_high] != -1L && below(ints[revoked], ints[revoked_high], c(low, high))) {
              kind <- SKIPPED
              payload <- no_bytes
              ended <- began
            } else if (word == WITH_MORE) {
              # A batch is answered by itself: nothing of it can lie in the area.
              count <- at + match(FALSE, table[6L * at:last - 4L] == WITH_MORE) - 1L
              state <- BATCH
              answer <- predict_many(model, texts[at:count], table[(6L * at - 5L):(6L * count)])
              at <- count
              .Internal(writeBin(answer, replies, NA_integer_, FALSE, FALSE))
              .Internal(flush(replies))
              if (moved) {
                moved <- FALSE
                go(home)
              }
              state <- IDLE
              next
            } else {
              state <- READ
              if (cut && .Internal(nchar(request, "bytes", FALSE, FALSE)) != table[6L * at - 5L]) stop()
              state <- PREDICT
              began <- .Internal(Sys.time())
              result <- predict(request)
              ended <- .Internal(Sys.time())
              state <- CHECK
              kind <- 0L
              # enc2utf8 makes something of bytes that are no UTF-8, so it gets only what it is for.
              if (utf8_locale && is.character(result) && length(result) == 1L && .Internal(validUTF8(result))) {
                payload <- .Internal(charToRaw(enc2utf8(result))) # of NA, its two letters
                if (length(payload) != 2L || !is.na(result)) kind <- RESPONSE
              }
              if (kind == 0L) {
                answer <- judge(result)
                kind <- answer$kind
                payload <- answer$payload
              }
            }
            state <- ANSWER
          }

          if (moved) {
            moved <- FALSE
            go(home)
          }
          size <- length(payload)
          elapsed <- (ended - began) * 1e9
          if (elapsed >= 1 && elapsed < 2147483647) {
            took <- as.integer(elapsed)
            took_high <- 0L
          } else {
            took_high <- as_halves(max(1, elapsed))[2L]
            took <- as_halves(max(1, elapsed))[1L]
          }
          count <- (size + 3L) %/% 4L
          if (word == WITH_HOLD && free + count <= room) {
            # Into the journal, which takes integers.
            ints[free] <- size
            ints[free + 1L] <- kind + PADDED
            ints[free + 2L] <- low
            ints[free + 3L] <- high
            ints[free + 4L] <- took
            ints[free + 5L] <- took_high
            free <- free + 6L
            if (count) {
              ints[free:(free + count - 1L)] <-
                .Internal(readBin(c(payload, filler), "integer", count, NA_integer_, TRUE, FALSE))
              free <- free + count
            }
            ints[committed] <- 4L * (free - area)
          } else {
            if (free > area) {
              .Internal(writeBin(ints[area:(free - 1L)], replies, NA_integer_, FALSE, FALSE))
            }
            answer <- c(size, kind, low, high, took, took_high)
            .Internal(writeBin(c(.Internal(writeBin(answer, no_bytes, NA_integer_, swap, FALSE)), payload),
                               replies, NA_integer_, FALSE, FALSE))
            .Internal(flush(replies))
            if (free > area) {
              ints[generation] <- if (ints[generation] == .Machine$integer.max) 0L else ints[generation] + 1L
              ints[committed] <- 0L
              free <- area
            }
          }
          state <- IDLE
        }
      }, error = function(e) lines <<- show_calls(sys.calls(), depth),
         warning = function(w) if (state == IDLE) invokeRestart("muffleWarning")), # of a NUL byte
      error = function(e) e)

      # Only a failure leads here, and what was said of it is the answer.
      if (state == READ) {
        kind <- RAISED
        payload <- describe(holds_nul(), character())
        ended <- began
      } else if (state == PREDICT) {
        ended <- .Internal(Sys.time())
        kind <- RAISED
        payload <- describe(failure, lines)
      } else if (state == CHECK) {
        kind <- NOT_STRING
        payload <- charToRaw(NO_UTF8)
      } else {
        message("the runner failed: ", explain(failure, lines))
        parallel:::mcexit(70L)
      }
      lines <- character()
      state <- ANSWER
    }
  }

  # The answer of predict that is not plainly a string.
  judge <- function(result) {
    why <- unfit(result)
    if (is.null(why)) list(kind = RESPONSE, payload = charToRaw(enc2utf8(result)))
    else list(kind = NOT_STRING, payload = charToRaw(why))
  }

  # An id's two halves as the double that has their bytes.
  as_word <- function(id) readBin(writeBin(id, raw(), endian = .Platform$endian), "double", 1L)

  # Whether a request with this id is not below the revoked one, whose halves are given.
  below <- function(revoked_low, revoked_high, id) {
    unsigned <- function(x) if (is.na(x)) 2147483648 else if (x < 0) x + 4294967296 else x
    high <- unsigned(id[2L])
    limit <- unsigned(revoked_high)
    high > limit || (high == limit && unsigned(id[1L]) >= unsigned(revoked_low))
  }

  answer_frame <- function(id, elapsed, result) {
    answer <- judge(result)
    frame(answer$kind, id, elapsed, answer$payload)
  }

  # The frames of a batch's answers, one behind the other; those of strings without further ado. low and high
  # are the halves of the ids.
  answer_frames <- function(low, high, elapsed, results) {
    count <- length(low)
    if (!is.character(results) || anyNA(results) || !all(.Internal(validUTF8(results))) ||
          !all(.Internal(Encoding(results)) %in% c("unknown", "UTF-8"))) {
      return(unlist(lapply(seq_len(count), function(i) answer_frame(c(low[i], high[i]), elapsed, results[[i]]))))
    }
    # All at once: a step for each answer would take longer than most models do.
    sizes <- .Internal(nchar(results, "bytes", FALSE, FALSE))
    took <- as_halves(elapsed)
    heads <- .Internal(writeBin(as.vector(rbind(sizes, RESPONSE, low, high, took[1L], took[2L])), raw(), NA_integer_, swap, FALSE))
    texts <- .Internal(charToRaw(paste(.Internal(setEncoding(results, "UTF-8")), collapse = "")))
    frames <- raw(length(heads) + length(texts))
    at <- rep(cumsum(c(0L, sizes[-count] + HEADER)), each = HEADER) + seq_len(HEADER)
    frames[at] <- heads
    frames[-at] <- texts
    frames
  }

  # The requests of a run, or of a batch to its end, whose first header is given: their headers, six integers
  # each, and their texts. NULL when the channel ends before.
  read_run <- function(requests, head) {
    table <- integer()
    texts <- character()
    repeat {
      more <- head
      if (head[2L] == RUN) {
        more <- .Internal(readBin(requests, "integer", 6L * head[5L], NA_integer_, TRUE, swap))
        if (length(more) < 6L * head[5L]) return(NULL)
      }
      table <- c(table, more)
      texts <- c(texts, .Internal(readChar(requests, more[6L * seq_len(length(more) %/% 6L) - 5L], TRUE)))
      if (6L * length(texts) < length(table)) return(NULL)
      if (table[length(table) - 4L] != WITH_MORE) return(list(table = table, texts = texts))
      head <- .Internal(readBin(requests, "integer", 6L, NA_integer_, TRUE, swap))
      if (length(head) < 6L) return(NULL)
    }
  }

  # The answers of a batch. One that fails is asked one by one: a bad request must not fail its neighbours.
  predict_many <- function(model, texts, table) {
    count <- length(texts)
    table <- matrix(table, nrow = 6L)
    low <- table[3L, ]
    high <- table[4L, ]
    whole <- .Internal(nchar(texts, "bytes", FALSE, FALSE)) == table[1L, ]
    began <- .Internal(Sys.time())
    passed <- function() max(1, (.Internal(Sys.time()) - began) * 1e9)
    depth <- length(sys.calls())
    if (all(whole)) {
      lines <- character()
      answers <- tryCatch(withCallingHandlers({
        predict_batch <- model$batch
        results <- predict_batch(texts)
        if (!is.character(results) && !is.list(results) || length(results) != count) {
          stop("predict_batch returned ", length(results), " results for ", count, " requests", call. = FALSE)
        }
        answer_frames(low, high, passed(), results)
      }, error = function(e) lines <<- show_calls(sys.calls(), depth)), error = function(e) {
        message("predict_batch failed; its requests go to predict one at a time:\n", explain(e, lines))
        NULL
      })
      if (!is.null(answers)) return(answers)
    }
    unlist(lapply(seq_len(count), function(i) {
      began <<- .Internal(Sys.time())
      predict <- model$predict
      depth <- length(sys.calls())
      lines <- character()
      tryCatch(withCallingHandlers({
        if (!whole[i]) stop(holds_nul())
        result <- predict(texts[i])
        answer_frame(c(low[i], high[i]), passed(), result)
      }, error = function(e) lines <<- show_calls(sys.calls(), depth)),
      error = function(e) frame(RAISED, c(low[i], high[i]), passed(), describe(e, lines)))
    }))
  }

  # When memory runs out, the kernel takes a worker, which costs one request, before the rest.
  offer_to_oom_killer <- function() {
    suppressWarnings(try({
      score <- as.integer(readLines("/proc/self/oom_score_adj"))
      cat(min(score + 500L, 1000L), file = "/proc/self/oom_score_adj")
    }, silent = TRUE))
  }

  arguments <- commandArgs(trailingOnly = TRUE)
  bundle <- arguments[1L]
  entry <- arguments[2L]
  under_fork <- arguments[3L] == "fork"
  channels <- arguments[4L]
  journal_fd <- as.integer(arguments[5L])

  channel <- function(...) file.path(channels, paste0(...))

  # A worker's group, by its number. The folder is the only table of workers: nurses come and go without
  # the zygote.
  pid_file <- function(number) channel(number, ".pid")
  pid_of <- function(path) {
    pid <- suppressWarnings(tryCatch(as.integer(readLines(path)), error = function(e) integer()))
    if (length(pid) == 1L && !is.na(pid)) pid
  }
  kill_worker <- function(pid) {
    # The group, and the process for the moment before it leads one.
    signal(pid, sigkill)
    signal(-pid, sigkill)
  }
  kill_all <- function() {
    for (path in list.files(channels, "\\.pid$", full.names = TRUE)) {
      pid <- pid_of(path)
      if (!is.null(pid)) kill_worker(pid)
    }
  }
  leave_with_group <- function() {
    signal(0L, sigkill) # the keeper leads it; zygote, nurses and what init started are in it
    Sys.sleep(1)
  }

  # The process that ends what init started, should the watchdog end before init returned. The kernel
  # then ends the keeper, but no child of it.
  guard_init <- function() {
    keeper <- Sys.getpid()
    guard <- parallel:::mcfork(TRUE)
    if (!inherits(guard, "masterProcess")) return(guard$pid)
    close(control)
    close(report)
    repeat {
      parent <- strsplit(sub("^.*[)] ", "", readLines("/proc/self/stat")), " ")[[1L]][2L]
      if (as.integer(parent) != keeper) leave_with_group()
      Sys.sleep(0.1)
    }
  }

  become_worker <- function(number, id, slot, model) {
    pid <- Sys.getpid()
    cat(pid, "\n", sep = "", file = channel(number, ".starting"))
    file.rename(channel(number, ".starting"), pid_file(number))
    .C(c_functions$setsid)
    send(report, FORKED, id, pid)
    close(control)
    close(report)
    requests <- read_end(channel(number, ".in"))
    replies <- write_end(channel(number, ".out"))
    # R cannot duplicate a descriptor onto another, but what is opened takes the lowest that is free.
    parallel:::closeFD(1L)
    logs <- list(fifo(channel(number, ".stdout"), "wb", blocking = TRUE))
    parallel:::closeFD(2L)
    logs[[2L]] <- fifo(channel(number, ".stderr"), "wb", blocking = TRUE)
    offer_to_oom_killer()
    parallel:::mc.set.stream()
    if (is.null(model)) {
      model <- try_model(entry)
      if (is.character(model)) {
        send(replies, INIT_FAILED, id, 0, charToRaw(model))
        parallel:::mcexit(1L)
      }
    }
    journal_path <- paste0("/proc/self/fd/", journal_fd)
    if (!maps_memory(journal_path, slot)) journal_path <- NULL
    send(replies, UP, id, pid, capabilities(model, !is.null(journal_path)))
    # mcfork turned it off. Before UP it would compile what runs once, which takes longer than the fork.
    compiler::enableJIT(3L)
    # R's own restart of this name would end it with the cleaning up that quit does.
    withRestarts(serve(model, requests, replies, journal_path, slot, getwd(), go_to, l10n_info()[["UTF-8"]]),
                 abort = function() parallel:::mcexit(70L))
    close(replies)
    parallel:::mcexit(0L)
  }

  # The nurse never returns. It cannot see what fork returned, only which of the two it is.
  become_nurse <- function(number, id, slot, model) {
    nurse <- Sys.getpid()
    .C(c_functions$fork)
    if (Sys.getpid() != nurse) become_worker(number, id, slot, model)
    status <- .C(c_functions$wait, status = -1L)$status
    code <- if (status < 0L) 70L else if (status %% 128L) 128L + status %% 128L else (status %/% 256L) %% 256L
    pid <- pid_of(pid_file(number))
    if (!is.null(pid)) signal(-pid, sigkill)
    unlink(pid_file(number))
    send(report, EXITED, id, code)
    parallel:::mcexit(0L)
  }

  # An order to kill may overtake the worker that it is for.
  kill_number <- function(number) {
    for (attempt in 1:200) {
      pid <- pid_of(pid_file(number))
      if (!is.null(pid)) return(kill_worker(pid))
      if (!file.exists(channel(number, ".in"))) return()
      Sys.sleep(0.005)
    }
  }

  be_zygote <- function(model) {
    go_to <<- keep_worker_apart() # here, once: it takes longer than a fork
    send(report, READY, payload = capabilities(model, TRUE))
    repeat {
      order <- readBin(control, "raw", HEADER)
      if (length(order) < HEADER) {
        # The watchdog is gone: nothing may outlive it.
        kill_all()
        leave_with_group()
      }
      kind <- as.integer(order[5L])
      id <- readBin(order[9:16], "integer", 2L, endian = "little")
      number <- sprintf("%.0f", sum(as.integer(order[9:16]) * 256^(0:7)))
      if (kind == FORK) {
        parallel:::mc.advance.stream()
        slot <- readBin(order[17:20], "integer", 1L, endian = "little")
        process <- parallel:::mcfork(TRUE)
        if (inherits(process, "masterProcess")) become_nurse(number, id, slot, model)
      } else if (kind == KILL) {
        kill_number(number)
      }
    }
  }

  # Compiled here, before the first fork: a function that is called once is not compiled by itself. Constants
  # become part of the code, since R looks for a variable of another function each time anew.
  constants <- mget(c("HEADER", "AREA", "SLOT", "WITH_MORE", "WITH_HOLD", "RUN", "PADDED", "RESPONSE", "RAISED", "NOT_STRING",
                      "SKIPPED", "IDLE", "READ", "PREDICT", "CHECK", "ANSWER", "BATCH", "swap"))
  for (name in c("serve", "read_run", "predict_many", "answer_frames")) {
    hot <- get(name)
    body(hot) <- do.call(substitute, list(body(hot), constants))
    assign(name, compiler::cmpfun(hot, list(optimize = 3L)))
  }

  speak_utf8()
  options(warn = 1L)
  c_functions <- libc()
  control <- read_end(channel("control.in"))
  report <- write_end(channel("control.out"))
  setwd(bundle)
  bundle <- getwd()
  send(report, HELLO, payload = charToRaw(sprintf('{"wire": %d, "runtime": "R %s"}', WIRE_VERSION, getRversion())))
  model <- NULL
  if (under_fork) {
    guard <- guard_init()
    model <- try_model(entry)
    if (is.character(model)) {
      send(report, INIT_FAILED, payload = charToRaw(model))
      leave_with_group()
    }
    while (alive(guard)) {
      signal(guard, sigkill)
      Sys.sleep(0.001)
    }
    gc()
  }
  # So that workers whose generator is L'Ecuyer's get streams of their own; others are seeded anew.
  parallel:::mc.reset.stream()
  zygote <- parallel:::mcfork(TRUE)
  if (inherits(zygote, "masterProcess")) be_zygote(model)
  close(control)
  close(report)
  repeat {
    .C(c_functions$wait, status = 0L) # also for what init started
    if (!alive(zygote$pid)) break
  }
  kill_all()
  leave_with_group()
}, envir = new.env(parent = baseenv()))
parallel:::mcexit(70L) # for a worker whose predict jumped to the top level
