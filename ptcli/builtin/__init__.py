"""The tiny model, tokenizer and data sets that ship with ptcli."""
