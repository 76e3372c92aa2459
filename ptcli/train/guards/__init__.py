"""The guards of a recipe's `guards` section: what is judged, by which figures, and what is said of it.

measures.py    where the trainers log what the guards need, by the metrics' names
decisions.py   when a figure is bad, for how long, and what to say        (no torch)
resumed.py     whether a run that goes on is where it was    (no torch)
movement.py    whether trained weights change
callback.py    feeds the decisions while a trainer trains
"""
