"""
Keeps what the model has read in a search, so that it need not read the same text twice.
"""
import torch

from model import KVCache
from sample import pad


class Store:
    """
    Keys and values of the tokens that a search has read. Each token has a slot; texts with the same beginning
    share its slots.
    """

    def __init__(self, model):
        cache = KVCache(model, 1, 0)
        self.k, self.v = cache.k[:, 0], cache.v[:, 0]                   # (n_layer, slots, hs)
        self.size = 0

    def add(self, cache, start, lengths):
        """
        Keep lengths[row] columns of each row of a cache, from column start on. Returns their slots, a list
        for each row.
        """
        device = cache.k.device
        inside = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
        rows, columns = inside.nonzero(as_tuple=True)
        first, self.size = self.size, self.size + len(rows)
        if self.size > self.k.size(1):      # at least doubled, so that it is seldom copied
            room = self.k.new_zeros(self.k.size(0), self.size, self.k.size(2))
            self.k, self.v = torch.cat((self.k, room), dim=1), torch.cat((self.v, room), dim=1)
        self.k[:, first:self.size] = cache.k[:, rows, start + columns]
        self.v[:, first:self.size] = cache.v[:, rows, start + columns]
        slots, ends = list(range(first, self.size)), torch.tensor(lengths).cumsum(0).tolist()
        return [slots[end - length:end] for end, length in zip(ends, lengths)]

    def load(self, model, slots):
        """The cache of texts whose tokens have these slots, a list for each row."""
        padded, _ = pad(slots, self.k.device)                           # (B, T)
        cache = KVCache(model, *padded.shape)
        cache.k[:], cache.v[:] = self.k[:, padded], self.v[:, padded]   # (n_layer, B, T, hs)
        return cache
