"""`python -m tutelage` is `tutelage`."""

from tutelage.cli.main import main

main()
