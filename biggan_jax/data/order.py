"""In which order records are seen: the endless row of epochs, each a permutation drawn anew.

The order is that of Grain's index shuffle: `MapDataset.range(n).seed(seed).shuffle().repeat()`. A
record's place in a permutation is computed and not looked up, so nothing is stored and all
positions cost the same. It is computed here rather than asked of Grain because Grain takes one
number at a time, 10 us of interpreter time each, which is a fifth of what reading a prepared
128-px image takes; NumPy takes thousands at once, 0.3 us each.

How a place is computed: a block cipher of few rounds is a permutation of the numbers of `2 w` bits,
and applying it again until the result is below `n` makes it one of 0..n - 1 (Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002). The cipher is Simon (Beaulieu et al., 2013,
https://eprint.iacr.org/2013/404) with 4 rounds, whose keys are drawn from the epoch's seed as C++'s
`std::seed_seq` does.
"""

import numpy as np

SMALL = 4096  # Records up to which an epoch's order is computed as a whole.
_FEWEST_BITS = 16  # Of a block. Orders of smaller blocks are not random enough.
_ROUNDS = 4


class Order:
    """Which record stands at each position of the endless row of shuffled epochs."""

    def __init__(self, length: int, seed: int):
        """Takes the number of records, at least 1 and at most 2^32, and a seed of at least 0."""
        self.length = length
        # As Grain draws the seed of a shuffle right after `.seed(seed)`.
        self._seed = np.random.SeedSequence([seed, 1]).generate_state(1, np.uint32)[0]
        # Blocks of 2^16 hold the few numbers of a small set so seldom that finding them takes long.
        # Few records are therefore put in the order that they have within a permutation of 2^16.
        self._small = length <= SMALL

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Returns the record at each position.

        Args:
          positions: whole numbers of at least 0, of any shape; epoch `e` is the positions from
            `e * length` to `(e + 1) * length`, exclusive.

        Returns:
          Record numbers, int64, of the same shape.
        """
        epochs, places = np.divmod(positions.reshape(-1).astype(np.int64), self.length)
        if self._small:
            which, epoch = np.unique(epochs, return_inverse=True)
            numbers = np.broadcast_to(np.arange(self.length), (len(which), self.length))
            keys = [k[:, None] for k in _keys(self._epoch_seeds(which))]
            keys = [np.broadcast_to(k, numbers.shape).reshape(-1) for k in keys]
            within = _permuted(numbers.reshape(-1), 2**_FEWEST_BITS, keys)
            orders = np.argsort(within.reshape(numbers.shape), axis=1)
            records = orders[epoch, places]
        else:
            records = _permuted(places, self.length, _keys(self._epoch_seeds(epochs)))
        return records.astype(np.int64).reshape(positions.shape)

    def _epoch_seeds(self, epochs):
        return (np.uint64(self._seed) + epochs.astype(np.uint64)).astype(np.uint32)  # Modulo 2^32.


def _permuted(numbers, length, keys):
    """Where each number stands in the permutation of 0..length - 1 that its keys mean."""
    bits = max(_FEWEST_BITS, (length - 1).bit_length())
    word = (bits + 1) // 2
    result = numbers.astype(np.uint64)
    left = np.arange(len(result))  # The numbers that have not landed below `length` yet.
    while len(left):
        result[left] = _encrypted(result[left], keys, word)
        again = result[left] >= length
        left, keys = left[again], [k[again] for k in keys]
    return result


def _encrypted(numbers, keys, word):
    """Simon on blocks of two words of `word` bits, `[N]` uint64."""
    mask = np.uint32(2**word - 1)
    high = (numbers >> np.uint64(word)).astype(np.uint32)
    low = numbers.astype(np.uint32) & mask

    def mixed(x):
        once, twice, eight = (
            ((x << np.uint32(r)) | (x >> np.uint32(word - r))) & mask for r in (1, 2, 8)
        )
        return (once & eight) ^ twice

    for i in range(0, _ROUNDS, 2):
        high = high ^ mixed(low) ^ (keys[i] & mask)
        low = low ^ mixed(high) ^ (keys[i + 1] & mask)
    return (high.astype(np.uint64) << np.uint64(word)) | low


def _keys(seeds):
    """The four words that `std::seed_seq` of one number makes, for `[N]` uint32 seeds."""
    n = _ROUNDS
    words = [np.full(len(seeds), 0x8B8B8B8B, np.uint32) for _ in range(n)]

    def scrambled(x, factor):
        return np.uint32(factor) * (x ^ (x >> np.uint32(27)))

    for k in range(n):
        after, later = (k + 1) % n, (k + 2) % n
        a = scrambled(words[k] ^ words[after] ^ words[k - 1], 1664525)
        # To be mixed in: how many numbers there are, then the number itself.
        b = a + np.uint32(k or 1)
        if k == 1:
            b = b + seeds
        words[after], words[later], words[k] = words[after] + a, words[later] + b, b
    for k in range(n):
        after, later = (k + 1) % n, (k + 2) % n
        a = scrambled(words[k] + words[after] + words[k - 1], 1566083941)
        b = a - np.uint32(k)
        words[after], words[later], words[k] = words[after] ^ a, words[later] ^ b, b
    return words
