package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// wideModelR is wideModel in R.
const wideModelR = `W <- NULL
init <- function() W <<- sin(0:511)
predict <- function(request) {
  x <- as.numeric(strsplit(request, ",", fixed = TRUE)[[1]])
  sprintf("%.6f", 1 / (1 + exp(-sum(W[seq_along(x)] * x))))
}
`

// plainLoopR prints how often a second a loop calls predict, without reading or writing anything.
const plainLoopR = `arguments <- commandArgs(TRUE)
setwd(arguments[1])
source("main.R")
if (exists("init")) init()
request <- arguments[2]
rows <- as.integer(arguments[3])
loop <- compiler::cmpfun(function() for (i in seq_len(rows)) predict(request))
invisible(predict(request))
began <- Sys.time()
invisible(loop())
cat(rows / as.numeric(difftime(Sys.time(), began, units = "secs")))
`

// plumberApp serves the same predict by plumber, as its documentation shows for a body of plain text.
const plumberApp = `arguments <- commandArgs(TRUE)
setwd(arguments[1])
source("main.R")
if (exists("init")) init()
library(plumber)
answer <- function(req) predict(req$postBody)
api <- pr()
api <- pr_post(api, "/", answer, serializer = serializer_text())
api <- pr_get(api, "/", function() "up", serializer = serializer_text())
pr_run(api, host = "127.0.0.1", port = as.integer(arguments[2]), quiet = TRUE, docs = FALSE)
`

func (b *bench) writeR(name, code string) (string, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "main.R"), []byte(code), 0o644)
}

// r is what issue 5 asks of the runner for R.
func (b *bench) r() error {
	for _, step := range []func() error{b.rAgainstPlumber, b.rStream, b.rFork} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) rAgainstPlumber() error {
	if exec.Command("Rscript", "-e", "library(plumber)").Run() != nil {
		fmt.Println("R against plumber: left out, since plumber is not installed: apt-get install r-cran-plumber")
		return nil
	}
	ozone, err := filepath.Abs("examples/ozone")
	if err != nil {
		return err
	}
	script := filepath.Join(b.dir, "plumber.R")
	if err := os.WriteFile(script, []byte(plumberApp), 0o600); err != nil {
		return err
	}
	if _, err := b.start("http://127.0.0.1:29400/", nil, "Rscript", script, ozone, "29400"); err != nil {
		return err
	}
	if _, err := b.watchdog(29410, ozone, cores()); err != nil {
		return err
	}
	if _, err := b.watchdog(29420, ozone, 1); err != nil {
		return err
	}
	urls := []string{"http://127.0.0.1:29400/", "http://127.0.0.1:29410/", "http://127.0.0.1:29420/"}
	rates := make([][]float64, len(urls))
	for range rounds {
		for i, url := range urls {
			rate, err := b.wrk(posting("190,7.4,67"), url)
			if err != nil {
				return err
			}
			rates[i] = append(rates[i], rate)
		}
	}
	for i, what := range []string{fmt.Sprintf("%d workers", cores()), "1 worker"} {
		ours := rates[i+1]
		ratios := make([]float64, len(ours))
		for round := range ours {
			ratios[round] = ours[round] / rates[0][round]
		}
		m := median(ratios)
		report("examples/ozone (R) through fwatchdog, "+what+", against plumber", m, "x", ">= 10", m >= 10,
			fmt.Sprintf("%.1f..%.1f; %.0f/s against %.0f/s", slices.Min(ratios), slices.Max(ratios), median(ours), median(rates[0])))
	}
	return nil
}

func (b *bench) rStream() error {
	loop := filepath.Join(b.dir, "loop.R")
	if err := os.WriteFile(loop, []byte(plainLoopR), 0o600); err != nil {
		return err
	}
	wide, err := b.writeR("wide-r", wideModelR)
	if err != nil {
		return err
	}
	ozone, err := filepath.Abs("examples/ozone")
	if err != nil {
		return err
	}
	for i, s := range []streamed{
		{"R, a regression over 64 numbers", 29430, wide, numbers(64), 60_000},
		{"R, a regression over 512 numbers", 29430, wide, numbers(512), 12_000},
		{"R, examples/ozone (predict_batch)", 29450, ozone, "190,7.4,67", 100_000},
	} {
		if i != 1 {
			if _, err := b.watchdog(s.port, s.bundle, 1); err != nil {
				return err
			}
		}
		if err := s.measureAgainst([]string{"Rscript", loop}, 1, 0.6); err != nil {
			return err
		}
	}
	return nil
}

// rFork measures from the order to a worker that answers, with 200 MB in the runner's memory.
func (b *bench) rFork() error {
	const code = `W <- NULL
init <- function() W <<- runif(25e6)
predict <- function(request) as.character(W[as.integer(request)] > 2)
`
	bundle, err := b.writeR("large-r", code)
	if err != nil {
		return err
	}
	admin := filepath.Join(b.dir, "admin-r.sock")
	cmd, err := b.watchdog(29460, bundle, 1, "admin_socket="+admin)
	if err != nil {
		return err
	}
	before := pss(cmd.Process.Pid)
	var took []float64
	for n := 2; n <= rounds+1; n++ {
		d, err := resize(admin, n)
		if err != nil {
			return err
		}
		took = append(took, float64(d)/float64(time.Millisecond))
	}
	m := median(took)
	report("adding an R worker after an init of 200 MB", m, " ms", "< 50", m < 50, fmt.Sprintf("%.1f..%.1f", slices.Min(took), slices.Max(took)))
	grown := (pss(cmd.Process.Pid) - before) / rounds
	report("its memory (PSS), its nurse's included", grown, " MiB", "", true, "whole before: "+strconv.Itoa(int(before))+" MiB")
	return nil
}
