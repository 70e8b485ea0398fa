"""Windows: accepted events in, rows out, for one shard of one view.

An aggregate is a monoid and a window is a fold over a range of one entity's events, kept in order of time:

- `segments` keeps each entity's events in one contiguous, ordered segment of shared columns;
- `folds` answers the fold over any range of a segment: by difference of running sums where the monoid has an inverse,
  over panes (blocks of 32, of 32 · 32, …) where it has none;
- `parts` are the monoids: what is kept of an argument's inputs; `digits` adds numbers up exactly;
- `aggregates` says of which parts each aggregate is made, and how it lowers their folds to a SQL value;
- `frames` knows where frames begin, and the ticks at which time alone changes them; `due` whose tick comes next;
- `panes` knows which events no frame will tell apart again;
- `shard` finds which rows a batch, or the time, makes or corrects, and folds each of their frames.

Everything works on whole batches with numpy; nothing runs once per event.
"""
