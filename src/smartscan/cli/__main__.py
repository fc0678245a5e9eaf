"""`python -m smartscan.cli`, for where the console script is not installed."""

from smartscan.cli import main

main()
