"""What is made of the tables of a study: statistics, comparisons, figures.

Sees tables, and what is plain in `study` (`families`, `competence`); `explore` alone opens stores and trains.
"""
