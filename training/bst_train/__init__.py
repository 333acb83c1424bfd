"""Trains, evaluates and exports Block-State Transformers for the bst inference server.

Modules, in the order in which data flows through them:

  tokenizer    text <-> token ids (bytes or SentencePiece); trains SentencePiece vocabularies
  corpus       JSON-lines files -> token arrays -> segments of documents, lane by lane
  config       ModelConfig: the `config.json` of a checkpoint, validated
  kernels/     the long convolutions: s4d, dss, s4, s5, explicit filters; their initial values
  parts        RMSNorm, feed-forward network, projections
  attention    block-tiled window attention
  layer        the transformer layer; bst (with contexts) and brect build on it; gss
  model        the language model
  loss         cross-entropy in chunks
  optimizer    Muon and AdamW, parameter groups, schedule
  trainer      the training loop, resume, progress, curve
  distributed  several processes that share the work of a step
  checkpoint   safetensors files: export and import
  evaluate     perplexity and bits per byte, overall and by position
  generate     sampling
  plot         loss curves as PNG
  convert      layers that other projects trained -> layers of a checkpoint
  cli          the command line: `python3 -m training.bst_train --help`
"""
