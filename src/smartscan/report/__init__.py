"""Rows of the catalogue to text for people or JSON for programs.

Touches: nothing here. One module per report, each with the same three steps: gather the rows (a function
named after the report), `page` them for people, `as_json` for programs. Sizes are shown as a lower bound
(≥) where something below could not be read.
"""
