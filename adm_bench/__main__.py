"""`python -m adm_bench`."""

from adm_bench.cli import main

main()
