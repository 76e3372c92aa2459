"""What the papers say, measured on the trainers that are installed. Heavy: imports torch, and TRL's trainers.

A family of identities is a module. Each identity builds the real trainer on the shipped model and data, calls its own
loss on a batch that its own loader made, and compares with `reference`: the paper's formula in float64, sequence by
sequence without padding, in loops that can be read beside the paper.
"""
