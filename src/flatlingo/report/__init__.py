"""What is made of the tables of a study: statistics, comparisons, figures.

Sees tables, and `study.families` (plain data); `explore` alone opens stores and trains.
"""
