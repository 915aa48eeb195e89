"""The command line: one thin module a command, which parses, calls and prints.

``app`` puts the commands together and runs one. ``process`` prepares numpy and the streams around
it, and turns an error into one line and an exit code. Options that commands share are in
``options``, their values are read by ``parsing``, and ``completing`` has the candidates that shells
offer.

What the commands print comes from a few modules:

- ``render``: consoles, tables, JSON documents, findings, numbers
- ``listing``: snapshots and their weights
- ``reachable``: which targets are reached how well
- ``plan_choice``, ``plan_report``: a plan, and what is printed of it
- ``sweep_print``, ``sweep_words``: what a sweep says
- ``sweep_curve``: what the drawings of a sweep show; ``axis`` has their ticks
- ``sweep_text``, ``sweep_svg``: the drawing in a terminal, and in the page of ``sweep_report``
- ``pictures``: files by matplotlib, on which ``plot_picture`` and ``sweep_picture`` draw
"""
