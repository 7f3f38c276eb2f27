"""The command line. Modules here import click alone at their top; everything else when a command runs."""
