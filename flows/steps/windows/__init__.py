"""Windows: accepted events in, rows out, for one shard of one view.

An aggregate is a monoid and a window is a fold over a range of one entity's events, kept in order of time:

- `segments` keeps each entity's events in one contiguous, ordered segment of shared columns;
- `folds` answers the fold over any range of a segment: by difference of prefixes where the monoid has an inverse, over
  panes (blocks of 32, of 32 · 32, …) where it has none;
- `aggregates` says what is folded: one small definition each;
- `shard` finds which rows a batch makes or corrects, and folds each of their frames.

Everything works on whole batches with numpy; nothing runs once per event.
"""
