# Everything is done by tools/setup.py, so that it also works where there is no make:
# `make test` is `python3 tools/setup.py test` (on Windows: `py tools\setup.py test`).
# Options go behind: `make tests ARGS="-k reconnect"`.

PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help setup demo test style types tests others compiled test-windows coverage bench cost docs

help:      ## this list
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/: *## */\t/'

demo:      ## set up, then run the main job
test:      ## set up, then everything that must pass
setup:     ## only set up: .venv and what Node needs
style:     ## format and lint (changes files; `make test` only checks)
types:     ## mypy --strict for Linux and for Windows
tests:     ## the whole suite on this Python
others:    ## … and on the other Pythons that are found
compiled:  ## … and on the hot modules compiled
test-windows: ## … and on the Pythons of Windows, under Wine
coverage:  ## each protocol test module alone, then everything
bench:     ## all benchmarks, in a quick form; `make bench ARGS=full` takes its time
cost:      ## record what a message costs, when a change of it is meant
docs:      ## run every block of every page, look for every public name

demo test setup style types tests others compiled test-windows coverage bench cost docs:
	@$(PYTHON) tools/setup.py $@ $(ARGS)
