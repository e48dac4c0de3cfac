"""Networks that turn videos into features, behind one protocol; each says its weights' hash and what it does to pixels."""
