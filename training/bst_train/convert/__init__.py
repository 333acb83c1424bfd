"""Turns layers that other projects trained into layers of this checkpoint format.

  layer     reading foreign arrays; one converted layer, written to a file or into a checkpoint
  s4        S4 and S4D kernels of state-spaces/s4 -> the `ssm.*` tensors of a bst or gss layer
  meliad    the recurrent layer of google-research/meliad -> a brect layer
  __main__  the command line: `python3 -m training.bst_train.convert --help`

A conversion is exact: it computes the same function up to the rounding of the stored tensors, or
it raises ConversionError, which names the array and what about it has no place in the format.
What an upstream file does not say about itself must be told; nothing is guessed.
"""
