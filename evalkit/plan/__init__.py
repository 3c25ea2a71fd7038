"""From requests to a plan: tokens, the trie of shared prefixes, batches, shards.

A plan is fixed before anything runs and follows from the suite, the tokenizer and the policy alone.
Nothing here sees weights, a device or the time.
"""
