"""The commands of ``bskt``, one module a subject; ``service/cli.py`` puts them together.

Their modules import click and ``service.console`` only: whatever costs time is imported inside the command.
"""
