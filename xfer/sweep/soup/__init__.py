"""The members of a sweep averaged into one network, where that pays on images that chose nothing.

M. Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time" (2022), with their greedy recipe.
"""
