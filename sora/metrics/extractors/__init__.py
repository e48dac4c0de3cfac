"""Networks that turn videos into features, behind one protocol, with their weights' hashes and their preprocessing."""
