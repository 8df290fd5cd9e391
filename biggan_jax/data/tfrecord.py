"""TFDS splits that people have as TFRecord files, which can only be read from the beginning.

What fits in memory is read once and loses nothing (loader.py). Of the rest `tf.data` reads the
records, several files at a time; they are shuffled by a buffer, undecoded, and decoded by threads.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from biggan_jax import host_tensorflow
from biggan_jax.config import ConfigError
from biggan_jax.data.batches import Batches
from biggan_jax.data.prefetch import Job
from biggan_jax.data.shard_source import ShardSource
from biggan_jax.data.source import evenly_spaced, parts, with_crops

_LABELS = 10_000  # Counted at most: all that stands before them in their files is read too.
_FILES_AT_ONCE = 16
_BLOCK = 8  # Records from one file before it is the next one's turn.
_AHEAD = 128  # Records read before they are asked for, where they come in order.
_BUFFER = 16_384  # Records, and
_BUFFER_BYTES = 2**29  # bytes that are shuffled at most.


class TfrecordSource(ShardSource):
    """Records of TFRecord shards; to get at one, its file is read up to it."""

    sequential = True
    count_all_up_to = _LABELS
    sampling = "the first of each file"

    def label(self, i: int) -> int:
        """Returns the label of record `i` without decoding the image."""
        return int(self.read_labels(np.array([i]))[0])

    def fill(
        self,
        records: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        crops: np.ndarray | None = None,
    ) -> None:
        """Reads a few records; see `Source.fill`."""
        for piece in self.pieces(records, images, labels, crops):
            piece()

    def pieces(
        self,
        records: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        crops: np.ndarray | None = None,
    ) -> Iterator[Callable[[], None]]:
        """Reads each file once, up to the last record wanted; see `Source.pieces`."""
        stream = self.in_order(records)
        for part in parts(len(records), self.piece):
            places, raw = zip(*itertools.islice(stream, part.stop - part.start), strict=True)
            of_piece = (x if x is None else x[list(places)] for x in (records, crops))
            yield functools.partial(self._scatter, raw, list(places), images, labels, *of_piece)

    def sample(self, count: int) -> np.ndarray:
        """Returns the first records of every file (of evenly spaced files if that is too many)."""
        files = len(self.shards.files)
        chosen = evenly_spaced(files, count)
        each = min(count, _LABELS) // len(chosen) or 1
        start = self.shards.start
        return np.concatenate(
            [np.arange(start[f], min(start[f] + each, start[f + 1])) for f in chosen]
        )

    def read_labels(self, records: np.ndarray) -> np.ndarray:
        """Returns the labels of records, `[N]` int32."""
        labels = np.empty(len(records), np.int32)
        for k, raw in self.in_order(records):
            labels[k] = self.examples.label(int(records[k]), raw, self.name_of_record)
        return labels

    def decode(
        self,
        raw: Sequence[bytes],
        records: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        crops: np.ndarray | None,
    ) -> None:
        """Decodes undecoded records whose numbers are known; else as `Source.fill`."""
        for k, (i, crop) in enumerate(with_crops(records, crops)):
            image = images[k].data.cast("B")
            labels[k] = self.examples.fill(i, raw[k], image, crop, self.name_of_record)

    def damage(self, first: int, last: int, reason: str) -> ConfigError:
        """Returns an error that names the first record that cannot be read, by reading them again.

        Args:
          first: where to begin.
          last: where to end, exclusive.
          reason: what to say if all can be read now.
        """
        try:
            for _ in self.in_order(np.arange(first, last)):
                pass
        except ConfigError as e:
            return e
        return ConfigError(f"data.name={self.name!r}: {self.where} could not be read: {reason}.")

    def in_order(self, records: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Gives (k, undecoded record number k of `records`) in the order of the files.

        Raises:
          ConfigError: naming the record that cannot be read.
        """
        found = [self.shards.locate(i) for i in records.tolist()]
        order = sorted(range(len(found)), key=found.__getitem__)
        for file, of_file in itertools.groupby(order, lambda k: found[k][0]):
            wanted = list(of_file)
            first, last = found[wanted[0]][1], found[wanted[-1]][1] + 1
            stream = enumerate(self._read(file, first, last), first)
            for place, same in itertools.groupby(wanted, lambda k: found[k][1]):
                raw = next(raw for at, raw in stream if at == place)
                yield from ((k, raw) for k in same)

    def _scatter(self, raw, places, images, labels, records, crops):
        some_images = np.empty((len(raw), *images.shape[1:]), np.uint8)
        some_labels = np.empty(len(raw), np.int32)
        self.decode(raw, records, some_images, some_labels, crops)
        images[places], labels[places] = some_images, some_labels

    def _read(self, file, first, last):
        """Gives the undecoded records of one file from place `first` to `last`, exclusive."""
        tf = host_tensorflow.load()
        place = first
        try:
            dataset = tf.data.TFRecordDataset(self.shards.files[file]).skip(first)
            # Ahead, as other threads wait for the next piece meanwhile.
            for raw in dataset.take(last - first).prefetch(_AHEAD).as_numpy_iterator():
                yield raw
                place += 1
        except tf.errors.OpError as e:
            raise ConfigError(f"{self.name_of(file, place)} cannot be read: {_reason(e)}.") from e
        if place < last:
            raise ConfigError(f"{self.name_of(file, place)} is missing: the file ends before it.")


class StreamLoader(Batches):
    """Gives the images of one step after the other; see `Batches` and `missing_guarantees`.

    Each process reads a part of its own of the records, neighbours in the order of the files, as
    large as its share of the columns. Its row of epochs is one of that part: an epoch of it holds
    every record of the part once, in the order of a shuffle buffer over several files at a time,
    drawn anew. The row is a function of seed and part, so the same number of processes sees the
    same batches after a stop; going on at a step reads what came before it in the epoch.
    """

    def __init__(
        self,
        source: TfrecordSource,
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        crop: str = "center",
        columns: slice = slice(None),
    ):
        """Measures a few records.

        Args:
          source: the data set.
          batch_size: images in one forward pass over all devices.
          num_batches: batches a step takes.
          seed: of order and crops; at least 0 and below 2^63.
          crop: `data.crop` of the config.
          columns: neighbouring columns of the global batch.

        Raises:
          ConfigError: if there are fewer records than processes, or they cannot be read.
        """
        super().__init__(
            source,
            batch_size=batch_size,
            num_batches=num_batches,
            seed=seed,
            crop=crop,
            columns=columns,
        )
        self._records = source
        cut = [len(source) * k // batch_size for k in (self.columns.start, self.columns.stop)]
        self._first, self._last = cut
        self._part = source.shards.cut(*cut)
        if len(self._part) == 0:
            raise ConfigError(
                f"data.name={source.name!r}: its {len(source)} records cannot be shared by so many"
                " processes while it is stored as tfrecord; prepare it as array_record."
            )
        looked_at = np.arange(self._first, min(self._first + 64, self._last))
        sizes = [len(raw) for _, raw in source.in_order(looked_at)]
        affordable = max(1, int(_BUFFER_BYTES / np.mean(sizes)))
        self.buffer = min(len(self._part), _BUFFER, affordable)
        self.missing_guarantees = (
            "the same batches for another number of processes (each reads a part of its own)",
            "a quick start at a later step (up to an epoch of undecoded records, here"
            f" {len(self._part):,}, is read first)",
            f"a full permutation each epoch (a buffer of {self.buffer:,} records shuffles them)",
        )

    def _jobs(self, first_step: int) -> Callable[[int], Job]:
        count = self._num_batches * len(self.columns)
        stream = self._stream(first_step * count)

        def job(step):
            arrays, images, labels = self._empty()
            return Job(arrays, self._pieces(stream, images, labels, self._crops(step)))

        return job

    def _pieces(self, stream, images, labels, crops):
        for part in parts(len(images), self._records.piece):
            taken = itertools.islice(stream, part.stop - part.start)
            records, raw = zip(*taken, strict=True)
            some = None if crops is None else crops[part]
            yield functools.partial(
                self._records.decode, raw, np.array(records), images[part], labels[part], some
            )

    def _stream(self, position):
        """Gives (record number, undecoded record) from a position of the row of epochs on."""
        first, done = divmod(position, len(self._part))
        records = self._unshuffled(first)
        for epoch in itertools.count(first):
            draws = np.random.Philox(key=[self._seed, self._first], counter=epoch << 64)
            of_epoch = itertools.islice(records, len(self._part))
            shuffled = _shuffled(of_epoch, self.buffer, draws)
            yield from itertools.islice(shuffled, done if epoch == first else 0, None)

    def _unshuffled(self, first_epoch):
        """Gives (record number, undecoded record), epoch by epoch, several files at a time."""
        tf = host_tensorflow.load()
        part = self._part
        try:
            for files, places, raw in self._dataset(tf, first_epoch).as_numpy_iterator():
                numbers = places - part.skip[files] + part.start[files] + self._first
                yield from zip(numbers.tolist(), raw.tolist(), strict=True)
        except tf.errors.OpError as e:
            raise self._records.damage(self._first, self._last, _reason(e)) from e

    def _dataset(self, tf: Any, first_epoch: int) -> Any:
        """All epochs in one dataset, so that the next one is read while the last one ends."""
        part = self._part
        files = tf.constant(part.files)
        skip, take = tf.constant(part.skip), tf.constant(np.diff(part.start))
        key = tf.constant([self._seed, self._first], tf.int64)

        def records(file):
            found = tf.data.TFRecordDataset(files[file]).skip(skip[file]).take(take[file])
            # A file that ends too soon would shift all that follows.
            found = found.apply(tf.data.experimental.assert_cardinality(take[file]))
            return found.enumerate(skip[file]).map(lambda place, raw: (file, place, raw))

        def epoch(number):
            drawn = tf.random.experimental.stateless_fold_in(key, number)
            order = tf.random.experimental.stateless_shuffle(tf.range(len(part.files)), drawn)
            return tf.data.Dataset.from_tensor_slices(order).interleave(
                records,
                cycle_length=_FILES_AT_ONCE,
                block_length=_BLOCK,
                num_parallel_calls=_FILES_AT_ONCE,
                deterministic=True,
            )

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        return epochs.flat_map(epoch).batch(64).prefetch(2)


def _shuffled(records, size, draws):
    """Gives all records, each time a random one of the `size` next ones that are left.

    By our own hand: within `flat_map`, `tf.data` shuffles each epoch by the seed of the first one.
    """
    numbers = itertools.chain.from_iterable(
        draws.random_raw(1024).tolist() for _ in itertools.count()
    )
    buffer = list(itertools.islice(records, size))
    for following in records:
        chosen = next(numbers) % size
        yield buffer[chosen]
        buffer[chosen] = following
    while buffer:
        chosen = next(numbers) % len(buffer)
        buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
        yield buffer.pop()


def _reason(error):
    return " ".join(str(error.message).split()).rstrip(".") or type(error).__name__
