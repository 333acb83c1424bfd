"""Trains, evaluates and exports Block-State Transformers for the bst inference server.

Modules, in the order in which data flows through them:

  tokenizer    text <-> token ids (bytes or SentencePiece); trains SentencePiece vocabularies
  corpus       JSON-lines files -> token arrays -> segments of documents, lane by lane
  config       ModelConfig: the `config.json` of a checkpoint, validated
  ssm          the S4D state-space convolution
  attention    block-tiled local attention and cross-attention
  model        the layers and the language model
  optimizer    Muon and AdamW, parameter groups, schedule
  trainer      the training loop, resume, progress, curve
  checkpoint   safetensors files: export and import
  evaluate     perplexity and bits per byte, overall and by position
  generate     sampling
  plot         loss curves as PNG
  convert      layers that other projects trained -> layers of a checkpoint
  cli          the command line: `python3 -m training.bst_train --help`
"""
