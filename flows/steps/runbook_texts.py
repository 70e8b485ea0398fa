"""The texts of the runbooks: for each alert what it means, whom it concerns, how to find the cause, what to do.

Each is read by somebody who knows nothing but the alert, perhaps at night: so it goes from what is seen to the cause,
and from the cause to the next command. What stands in braces is filled in, shared parts first.
"""

from collections.abc import Mapping

from freshet.schemas.finding import Cause

PARTS: Mapping[str, str] = {
    "aftermath": """\
What was held back may alert then, for what is over: FreshetSkew (`stale_online`) for about ten minutes,
FreshetFreshnessBurnsFast for half an hour, FreshetFreshnessBurnsSlowly (a ticket) for two hours, after a long outage
for six; there is nothing to do about any of them. `freshet status` calls views BREACHED for the first five or six
minutes: as long as the validator has the finding open that FreshetSkew tells of.""",
    "where": """\
Commands are run in the project's folder, with the settings of its processes. Why a process ended is said by the last
line of its log that begins with `freshet:`; of one that was killed there is none.

With docker compose, `freshet status` is `docker compose run --rm status`, `freshet check` is
`docker compose run --rm check`; others are as `docker compose run --rm --no-deps materializer dlq list`. A part (kafka,
valkey, materializer, validator, server, producer) is started as by `docker compose up --detach materializer`, stopped
and started by `docker compose restart materializer`; `docker compose logs --tail 100 materializer` is its log, and
`docker compose ps --all materializer` has its exit code. Elsewhere start and stop parts by your service manager.""",
    "server": """\
The server's log says more: `docker compose logs --tail 20 server`, or your service manager's. It answers this without
a token, by https where FRESHET_SERVER_CERTIFICATE is set (each worker also on its own port, from
FRESHET_METRICS_ADDRESS upwards: `curl -s localhost:9306/healthz`):

    curl -s localhost:6566/healthz""",
    "parts": """\
{other_parts}
- **`materializer` is DOWN**: It ended, or never started: it waits for others as long as FRESHET_PATIENCE says, and
  then has to be started again, after what it waited for. Its log says why it ended; FreshetMaterializerDead.md goes
  by it.""",
    "other_parts": """\
- **a part is UNWELL**: It answers, and says itself what it waits for, or what fails. Where that is a part that is ok
  here, it reaches that one at another address or with other credentials than you.
- **`kafka` is DOWN**: Kafka does not answer at the address shown. Start it, or mend the network or credentials. With
  `no leader for …` it does, but the broker that leads these partitions is away; until it is back nothing is known of
  the topic's other partitions either.
- **`online store` is DOWN**: Redis does not answer, or refuses writes (no memory, read-only): the reason stands
  there. Start it (`docker compose up --detach valkey`), or mend that.
- **`offline store` is DOWN**: The folder cannot be read, or its ledger not. A full disk, a lost mount or other
  permissions are the usual reasons: `df -h` and `ls -l` on the folder.""",
    "restart": """\
What is down comes first. Once it answers, a materializer that runs still goes on by itself; one that has ended is
DOWN in `freshet status` until it is started. It may be started at any time, and goes on where the last commit ended: no
event is lost or counted twice. One that hangs is stopped before, since a second one is refused. With your service
manager, or in the foreground:

    freshet run materializer""",
    "more_threads": """\
If it simply has too much to do, give it more threads or processes; they share partitions and shards. There are as many
shards as there were workers at first: for more, it is started once with --rebuild, which makes state anew from the
event archive. The one that runs is stopped before. With your service manager (FRESHET_MATERIALIZER_PROCESSES=2,
FRESHET_SHARDS=2), or in the foreground:

    freshet --set shards=2 run materializer --workers 2 --rebuild""",
}

TEXTS: Mapping[str, str] = {
    "FreshetLag": """\
## Meaning

The oldest message that the materializer has not committed has waited longer than the declared freshness ({declared}),
for a whole minute. Kafka itself tells so: it is true whether or not the materializer is well.

## Impact

Online values are as old as the alert says, where only some partitions are behind those of their entities. Nothing is
lost while Kafka keeps what waits (`lost in` of `freshet status`): it is worked off once the cause is mended.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. The second table says of the stream how many
messages wait, and whether it is being worked off.

{parts}
- **all parts are ok, the stream is `stop` or `stall`**: The materializer hangs, or one partition does, which leaves the
  part ok. Go on with FreshetStopped.md.
- **all ok, `waiting` falls from look to look**: It catches up: `done in` says when it is through. Wait.
- **all ok, `waiting` grows from look to look**: More comes than it gets done. See whether `in/s` is unusual (a
  producer sends old events again?), else give it more threads.

## Mitigate

{restart}

{more_threads}

## Verify

`freshet status --watch` shows `oldest` falling below {declared}. The alert ends a scrape later. {aftermath}
""",
    "FreshetStopped": """\
## Meaning

Messages wait in this partition, and the materializer has committed nothing there for longer than all of its last ten
commits took (Burrow's STOP).

## Impact

Rows of entities in this partition are not updated. Nothing is lost while Kafka keeps the messages: `lost in` of
`freshet status` says how long that is.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. The second table has `stop (3 of 8)` where that
is true of three of eight partitions; `freshet status --json` has every one under `partitions`.

{parts}
- **all parts are ok, every partition has status STOP**: The materializer hangs, or cannot commit.
  `curl -s localhost:9308/healthz` says what it waits for, and so does its log, after `waiting:`.
- **all parts are ok, only some partitions have STOP**: Their reader hangs, of which neither /healthz nor the log tells.
  Stop the materializer and start it: a reader that hung goes on. If the same partitions stand still, Kafka's own tool
  tells of their leaders (in its container; elsewhere with the address that `freshet status` shows):
  `kafka-topics.sh --bootstrap-server localhost:9092 --describe --topic {topic}`.
- **the log ends with `events in a row that cannot be used`**: Producers send what the contract does not allow. Go on
  with FreshetRejectLimitNear.md.

## Mitigate

Where all parts are ok, stop the materializer, which may take some ten seconds, and start it; FreshetMaterializerDead
may page until it is back. Else:

{restart}

## Verify

`freshet status --watch` shows the stream as `ok`, and `waiting` falling, or 0. The alert ends a scrape later.
{aftermath}
""",
    "FreshetStalled": """\
## Meaning

The materializer commits, but always the same offset of this partition, and messages wait behind it (Burrow's STALL).

## Impact

Rows of entities in this partition are not updated; others are. Nothing is lost while Kafka keeps the messages.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. `freshet status --json` has every partition
under `partitions`; `stall (1 of 8)` in the second table is one of eight.

{parts}
- **all parts are ok**: The message behind the committed offset cannot be got past. The materializer's log names
  topic, partition and offset if it is at fault; if it says nothing, Kafka does not hand the message out, as when a
  transaction was left open.
- **two materializers run**: One of them commits old offsets. There must be one flow a project: stop the other.

## Mitigate

Start the materializer again: it opens every partition anew, and goes on where the last commit ended.

    freshet run materializer

An open transaction is ended by its producer, or by Kafka after `transaction.max.timeout.ms` (15 minutes).

## Verify

`freshet status --watch` shows the stream as `ok`, and `waiting` falling. The alert ends a scrape later. {aftermath}
""",
    "FreshetRewound": """\
## Meaning

An offset was committed for the group {group} that lies before the one committed last (Burrow's REWIND). The
materializer never does that.

## Impact

None on rows: the materializer goes by its own ledger, not by Kafka's offsets, and its next commit puts them right.
But lag was told wrongly meanwhile.

{concerned}

## Check

{where}

Who else commits in this group? Kafka's own tool shows its members:

    kafka-consumer-groups.sh --bootstrap-server localhost:9092 --describe --group {group}

- **somebody ran `kafka-consumer-groups.sh --reset-offsets`**: It has no effect on Freshet. Tell them so.
- **the topic was deleted and made anew**: Its offsets begin at 0 again, and the ledger's are further on: the
  materializer refuses to go on, and says how (`freshet run materializer --accept-gap`).
- **another program has the same group.id**: Give it one of its own.

## Mitigate

Nothing has to be done to Freshet unless the topic is new. To read old events again on purpose, use
`freshet replay events.jsonl --out rows`, or a view of another name.

## Verify

`freshet status` shows the stream as `ok`. The alert ends a quarter of an hour later.
""",
    "FreshetBreachNear": """\
## Meaning

Nothing is late yet. But the lag has grown for five minutes, and goes on like this: the freshness target ({declared})
is passed within the time that the alert says.

## Impact

None so far. Soon values will be older than declared.

{concerned}

## Check

{where}

    freshet status

The second table has what comes (`in/s`), what gets done (`done/s`), and `late in`.

- **`in/s` is much higher than usual**: A burst, or a producer that sends old events again. If it ends soon, wait;
  else give more threads.
- **`in/s` is as usual, `done/s` is lower**: The materializer is slower than it was: its machine is short of processor
  or memory, or Redis, or the disk of the offline store, is slow. `rows/s` and `p99` in the third table say of which
  view.

## Mitigate

{more_threads}

## Verify

`late in` of `freshet status --watch` says `never`.
""",
    "FreshetRetentionNear": """\
## Meaning

A message that was never read is deleted by Kafka within hours: the topic's retention ends before the materializer
gets to it.

## Impact

Once deleted, its events are missing from both stores for ever, and from what models are trained on. The materializer
then refuses to go on until somebody accepts the gap.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. `lost in` of the second table is the time that
is left, `done in` the time it takes to catch up.

{parts}
- **`done in` is longer than `lost in`**: It will not make it: lengthen the retention now.
- **`done in` is well below `lost in`**: It catches up in time. Lengthen the retention all the same.

## Mitigate

First gain time, which takes one command and harms nothing but disk space of the brokers (here 14 days):

    kafka-configs.sh --bootstrap-server localhost:9092 --alter \\
      --entity-type topics --entity-name {topic} --add-config retention.ms=1209600000

Then do away with the cause, as FreshetLag.md says. If messages are gone already, this goes on without them:

    freshet run materializer --accept-gap

## Verify

`lost in` of `freshet status` is longer than `done in`, and rises.
""",
    "FreshetFreshnessBurnsFast": """\
## Meaning

Of the validator's looks at this view, so many found messages that had waited longer than {declared} that the
allowance of the declared target ({objective}) would be used up within days. Both a long and a short window say so, and
the short one is half an hour for one of the two pairs: it may page for so long after an outage is over.

## Impact

Values are too old too often. At this pace the target will not be kept this month.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. The third table says how the view keeps up.

{parts}
- **the view is STALLED, or its stream `stop` or `stall`**: Go on with FreshetStopped.md.
- **the view is lagging**: Go on with FreshetLag.md.
- **the view is fresh, idle or BREACHED, nothing waits, and there was an outage within the hour**: That was it, and it
  is over: BREACHED means that too many looks were late, not that one is. There is nothing to do: silence
  this alert for half an hour in Alertmanager.
- **the view is fresh, idle or BREACHED, without one**: It comes and goes. Look on the dashboard when: at bursts (more
  threads), at restarts (fewer deploys), or at the same time as something else on that machine.

## Mitigate

{restart}

{more_threads}

## Verify

`freshet_freshness_burn_rate` of the view, window 5m, is below 1 on its dashboard; a validator that was started
meanwhile begins at 0. The alert ends once that of 30m is small, too.
""",
    "FreshetFreshnessBurnsSlowly": """\
## Meaning

Over hours or days, more of the validator's looks found this view late than the declared target ({objective}) allows: a
little all the time, or much for a while, as in an outage, which is counted still when it is over.

## Impact

Values are somewhat too often older than {declared}. At the end of the month the target was not kept.

{concerned}

## Check

{where}

    freshet status

Then look on the view's dashboard when looks were late: `freshet_freshness_burn_rate` by window.

- **at bursts of events**: More threads or processes: see below.
- **at each deploy or restart**: Restarts take longer than the target: deploy less often, or allow for it.
- **in an outage that is over**: It is counted still, for two hours, or for six if it was long: there is nothing to do.
- **all the time, a little**: The target is tighter than FRESHET_EPOCH, or what the machine gives: a row is counted as
  late only once it waits longer than both. Declare what is needed.

## Mitigate

{more_threads}

If the target itself is wrong, change `freshnessTarget` and run `freshet apply`.

## Verify

`freshet_freshness_burn_rate` of the view, window 6h, is below 1.
""",
    "FreshetSkew": """\
## Meaning

The validator found a check that does not hold, and its second look confirmed it. The alert's label `cause` says what
kind of difference it is, `feature_view` where. A page is about what is served or trained on now; a ticket is one of
{small_causes}.

## Impact

Values that were served since it began may be wrong. Predictions made with them are, too. The evidence names the
feature, and single entities.

{concerned}

## Check

{where}

    freshet check

It does one round now, and prints each finding with rows of evidence: entity, event time, both values, Kafka's
partition and offset. What the validator saw when it opened the finding is the newest page of its Data Docs
(`.freshet/docs/index.html`) and the newest record of the topic `freshet.findings`.

- **it says `ok`**: The finding is about other rows than this round's sample, or is over, or tells that too many looks
  were late (`freshness_is_within_objective`), of which one round knows nothing. See Data Docs.
- **it says `inconclusive`**: A part does not answer, or too little was compared: `freshet status`.
- **it shows the finding**: Go by its cause, below.

## Mitigate

By cause:

{causes}

`freshet repair` writes each entity's newest offline row online again, and never an older one over a newer one. It may
run while everything else does.

## Verify

`freshet check` says `ok`; it may take a minute. The finding is over, and no longer on the screen of `freshet status`,
once the check has held for FRESHET_QUIET (a minute); one of `freshness_is_within_objective` some five minutes after the
last late look. The alert ends five minutes later, so that what comes back meanwhile is not another page.
""",
    "FreshetRejects": """\
## Meaning

Events of this stream cannot be used, for the reason that the label `reason` gives. They are not lost: each is kept,
byte for byte, in the dead letters of the topic.

## Impact

Rows are made without these events, so counts and sums are too low.

{concerned}

## Check

{where}

    freshet dlq list --since 1h --limit 20

It prints each event, where it stands in Kafka, and what is wrong with it; the last line counts reasons.

- **`contract` or `undecodable`**: A producer sends another form than the contract in `schemas/events/` says: it was
  deployed anew, or the contract was. Put the wrong one right.
- **`unknown_version`**: Producers are ahead of the contract: deploy the contract with that version. If the version is
  an old one, or none was said, the contract lacks `upcasts` from it, or its `unsigned_version`.
- **`null_key`**: The entity's column is null: it is the producer's to fill in.
- **`late`**: Events are further behind their partition than the contract's lateness: a producer sends old events, or
  one with a clock that ran ahead moved the partition's time on.
- **`future`**: A producer's clock runs ahead. The partition and offset lead to it.
- **`transform`**: The declared SQL fails on these values: the detail says which function. Make it total.

## Mitigate

Once the cause is gone, send those again that fit by now. The first command only says what the second will do:

    freshet dlq redrive --dry-run
    freshet dlq redrive

## Verify

`freshet dlq list --since 5m` says `no dead letters`.
""",
    "FreshetRejectLimitNear": """\
## Meaning

For thousands of events in a row not one could be used. That is a wrong deploy, not bad data. At FRESHET_REJECT_LIMIT
(10000 if not set) the materializer ends itself with exit code 1, so that it does not empty the topic into the dead
letters.

## Impact

Features of this stream stand still. The events are kept as dead letters, those after the limit in the topic.

{concerned}

## Check

{where}

    freshet dlq list --since 1h --limit 5

The detail says which field of the contract is not as it should be.

- **a producer was deployed**: Take it back, or deploy the contract that it uses (`schemas/events/`).
- **the contract or declaration was deployed**: Take it back: the version before accepted these events.
- **`undecodable`**: Something else than JSON is sent, as by another serializer, or to the wrong topic.

## Mitigate

Once producers and contract agree, start the materializer, if it has ended, and send the dead letters again:

    freshet run materializer
    freshet dlq redrive --dry-run
    freshet dlq redrive

If the bad events are still in front of the good ones in Kafka, let it pass them: start it once with a higher
FRESHET_REJECT_LIMIT. They become dead letters, and are not lost.

## Verify

`freshet status` shows rejects that do not grow, and `done/s` above 0.
""",
    "FreshetCheckpointOld": """\
## Meaning

Messages wait, the materializer runs, and yet for a minute nothing of what it read became durable.

## Impact

Rows may be online already, but are not in the offline store. After a crash they are made again: nothing is lost, but
it takes longer the older the checkpoint is.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. The materializer itself says what it waits for,
here, and in its log after `waiting:`:

    curl -s localhost:9308/healthz

{other_parts}
- **/healthz names Kafka or the online store**: That part does not answer it, though it may answer you: network,
  credentials, a full Redis.
- **/healthz says `ok`, `rows/s` is high**: It catches up with so much at once that a commit takes long. `done in`
  should fall.
- **/healthz says `ok`, nothing moves**: The disk of the offline store or of FRESHET_RECOVERY is full or slow:
  `df -h`. Else it hangs: start it again.

## Mitigate

{restart}

## Verify

`freshet status` says `durable up to epoch …` a few seconds ago, and the number rises.
""",
    "FreshetSilent": """\
## Meaning

Everything in the topic is read, and nothing new has come for minutes, though usually events come all the time. The
flow itself is well: there is nothing for it to do. What is usual is known once events came for a quarter of an hour,
half an hour ago: the silence of a younger deployment is not alerted.

## Impact

Values fall as windows empty: counts go to 0 as if nobody did anything, and models see that as fact. Values of the
newest event stay as they are.

{concerned}

## Check

{where}

    freshet status

`kafka` is ok, and nothing waits. `last event` decides: it says how long ago the newest message was written, by the time
that it carries; `freshet status --json` has that of each partition. If that is longer than producers are ever silent,
nobody sends. (`in/s` is that of one second, and 0 between two bursts.) Should they send old times: whether `end_offset`
of any partition rises within some minutes decides.

Then ask your service manager whether the producers run, and see what their log says: `freshet status` knows nothing of
them.

- **a producer does not run**: It ended with the reason in the last line of its log, or was stopped or killed, of which
  the log says nothing: start it. One that was killed may have lost what it was sending: have it send again from the
  time of `last event` on.
- **a producer runs, and its log says nothing**: It hangs, or its own source is silent: stop it and start it; if nothing
  comes then, look at its source.
- **the producers' log has errors of Kafka**: It is theirs to mend: address, credentials, quota, a full disk of the
  brokers.
- **the producers say that they send**: They send to another topic or cluster than `{topics}` at FRESHET_BROKERS.
  Compare both.
- **it was as silent yesterday at this hour**: Silence is right. Silence the alert for such times in Alertmanager.
- **`last event` is seconds ago**: It is over, or events come that are all rejected: `freshet dlq list --since 15m`.

## Mitigate

Start the producers, or mend them: with docker compose, `docker compose up --detach producer`. If a producer's log says
`not delivered` (that of Freshet's own says how many events of which stream, of which times, and with which ids if the
contract names an event id), have it send again what its source has from the first of these times on; how, only who runs
it knows. `freshet produce FILE` sends a file. Where the contract has an event id, what comes twice within its lateness
counts once; else send what was not delivered, and no more. To see that the topic takes any, send one true event that
was not sent yet (one JSON document a line): it stays there.

    freshet produce events.jsonl

## Verify

`last event` of `freshet status --watch` is seconds ago again (where events come in bursts, a burst ago). The alert ends
within a minute.
""",
    "FreshetMaterializerDead": """\
## Meaning

Prometheus has heard nothing of the materializer for a minute: it has ended, or hangs, or cannot be reached.

## Impact

While it is down no feature changes, online or offline. Nothing is lost while Kafka keeps the messages.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. If it is DOWN there too, it has ended. Its log
says why: the last line that begins with `freshet:`; what is above (of a panic, of leaks) is no cause.

{other_parts}
- **`freshet status` says that it is ok**: It runs, and only Prometheus does not reach it: FRESHET_METRICS_ADDRESS
  must be an address that Prometheus can reach, and stand in prometheus.yml. Features are well.
- **`cannot be used`, `is not available`; exit code 5**: An outside system was away for longer than FRESHET_PATIENCE;
  the line names it, its address and the cause. Mend that, then start it.
- **`Hint:`; exit code 2**: It refuses to start: a setting, the declaration, or its state. Do what the hint says.
- **exit code 1, `events in a row that cannot be used`**: Producers send what the contract does not allow. Go on with
  FreshetRejectLimitNear.md.
- **exit code 137, or `Killed`**: It had too little memory. `freshet plan` estimates the state of each window; give it
  more, or declare a `resolution:` for the widest.
- **`a defect`**: A fault of the program, or of a library. Keep the log, and start it once; if it ends so again, report
  it with the trace above the line.
- **a message about the recovery folder**: State is lost or of another run. `freshet run materializer --rebuild` makes
  it anew from the event archive; it takes time, and loses nothing.
- **a partition `does not have the offset`**: Kafka deleted messages that were not read. What is between is lost:
  `freshet run materializer --accept-gap` goes on without it.

## Mitigate

{restart}

## Verify

`freshet status` shows `materializer` as ok, and `waiting` falling. The alert ends at the next scrape. If Kafka was
away, see that the producers send again: `last event` is seconds ago (else FreshetSilent.md). {aftermath}
""",
    "FreshetValidatorDead": """\
## Meaning

Prometheus has heard nothing of the validator for a minute: it has ended, or hangs, or cannot be reached.

## Impact

Features are not affected: those below are not watched. Nobody looks whether they are right; and since the validator
exports the lag, alerts about lag, skew, freshness and silence cannot fire. Take their silence for nothing.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why; of the validator, at which address it does not.
The lag it shows is asked of Kafka, and true. The last line of the validator's log that begins with `freshet:` says why
it ended, if it ended by itself.

- **`freshet status` says that it is ok**: It runs, and only Prometheus does not reach it: FRESHET_METRICS_ADDRESS
  must be an address that Prometheus can reach, and stand in prometheus.yml.
- **`No module named 'great_expectations'`**: It was installed without the validator's part:
  `pip install freshet[validator]`.
- **exit code 2**: It refuses its settings or the declaration: the line ends with a hint.
- **there is none, on purpose**: Set FRESHET_VALIDATOR_ADDRESS to `off`, and run `freshet apply`.
- **exit code 137, or `Killed`, or no reason at all**: It was killed, mostly for too little memory: give it more, or a
  smaller FRESHET_SAMPLE. If it was the machine that went, there is nothing to mend.

## Mitigate

Start it. It may be started at any time, also while Kafka or Redis is away. What it had found is found again within
minutes, if it still holds. It answers after some seconds, on a slow machine after two minutes; until then
`freshet status` says DOWN, then UNWELL until its first round has ended. That one may be `inconclusive`:

    freshet run validator

Until it runs, look by hand now and then: `freshet status`, `freshet check`.

## Verify

`freshet status` says that `validator` is ok, and `validated` a few seconds ago. The alert ends at the next scrape, and
FreshetLagUnknown with it.
""",
    "FreshetValidatorFailing": """\
## Meaning

The validator runs, but for five minutes each of its rounds failed in some view: it could not look, or its judge
failed.

## Impact

Features may be well or not: nobody can tell. Findings stand as they were before.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. The validator says what is wrong with its
rounds, here and in its log:

    curl -s localhost:9307/healthz

{other_parts}
- **/healthz names Kafka or the online store, which answer you**: The validator reaches them at other addresses or
  with other credentials than you: compare settings.
- **/healthz names a parquet part**: A file of the offline store is damaged or cannot be read. Look at it; bring it
  back from a copy.
- **/healthz names Feast**: Feast's registry is away or of another version: `freshet apply` registers anew.
- **`no round has begun for …`**: A round hangs or takes very long: start the validator again, with a smaller
  FRESHET_SAMPLE if the machine is slow.

## Mitigate

Mend what does not answer. The validator goes on by itself; it may also be started again at any time:

    freshet run validator

## Verify

`freshet check` ends with exit code 0 or 1, and `freshet status` says `validated` a few seconds ago.
""",
    "FreshetLagUnknown": """\
## Meaning

For a minute nobody has heard from Kafka how far the materializer is. Either Kafka does not answer, or the process
that exports the lag (FRESHET_LAG_EXPORT: the validator if not set) does not run.

## Impact

If Kafka is away, no feature changes: values stand still; and producers may end, or give up events, which are lost
unless they are sent again. In any case no alert about lag or silence can fire.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. It asks Kafka itself.

- **`kafka` is DOWN**: That is it: Kafka does not answer at the address shown, for the reason shown. The materializer
  waits as long as FRESHET_PATIENCE says, then ends with exit code 5, and has to be started again.
- **`kafka` is DOWN with `no leader for …`**: The broker that led the partitions named there is down or cut off: start
  it, or mend the network. Until it is back nothing is known of the topic's other partitions.
- **`kafka` is ok, `validator` is DOWN**: Nobody exports the lag. Go on with FreshetValidatorDead.md.
- **both are ok, and Kafka was away**: Wait half a minute. If the alert stays, stop the validator and start it.
- **both are ok all the time**: FRESHET_LAG_EXPORT is `off` or names another process; or the validator reaches Kafka at
  another address than you (its log says `lag is not known`); or the topics do not exist yet: `freshet apply`.

## Mitigate

Start Kafka again, or mend the network or credentials: with docker compose, `docker compose up --detach kafka`. Then
see that the materializer still runs, and start it if not:

    freshet run materializer

See that the producers run, too, and again some minutes after Kafka is back: those that ended, or whose log says
`not delivered`, are to send again (FreshetSilent.md).

## Verify

`freshet status` shows `kafka` and `materializer` as ok, `waiting` falling to 0, and `last event` seconds ago: if not,
see to the producers (FreshetSilent.md). The alert ends at the next scrape. {aftermath}
""",
    "FreshetOfflineVolume": """\
## Meaning

In the last 24 hours more parquet was written than the declared offlineVolume ({volume}).

## Impact

None on values. Disks fill faster than was planned for, and historical retrieval reads more.

{concerned}

## Check

{where}

    freshet plan

It says of each view how many rows an event makes, and how many bytes a day at the rate of the archived events. The
dashboard has bytes by view.

- **more events come than were planned for**: Declare a larger `offlineVolume`, and provide the disk.
- **one view makes many rows of an event**: Its windows follow the time closely: a longer `decay:` (or `off`) makes
  fewer rows.
- **many corrections**: Events come out of order, so rows are written again: see the producers, or a replay that runs.

## Mitigate

Change the declaration, see what becomes of it, and make it so:

    freshet plan
    freshet apply

Then start the materializer again. See also that the disk has room for some days: `df -h`.

## Verify

`freshet plan` prints no warning about parquet. The alert ends once a whole day is below what is declared.
""",
    "FreshetServerDead": """\
## Meaning

Prometheus has heard nothing of the server for a minute, though it had within the last day. If it is a page, no worker
is left; if a ticket, the one that the label `instance` names.

## Impact

As a page: whoever asks the server for features gets no answer. Both stores are not affected, and go on being filled.
Who reads the online store by Feast's own client is not affected, either.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. `server` stands there if it answers, or if
FRESHET_SERVER_ADDRESS is set. {server}

- **it answers**: Only Prometheus does not reach it: FRESHET_METRICS_ADDRESS must be an address that Prometheus can
  reach, and stand in prometheus.yml, each worker with its own port (as `freshet apply` writes it of
  FRESHET_SERVER_WORKERS).
- **exit code 2**: It refuses to start: a setting (FRESHET_SERVER_TOKEN is missing where FRESHET_SERVER_ADDRESS is not
  loopback, a certificate cannot be read) or the declaration. The line ends with a hint of what to do; do that.
- **exit code 5, or 137, or `Killed`**: It, or one of its workers, which all end together, was ended from outside, most
  often since memory was short: fewer workers, or a lower FRESHET_SERVER_CONCURRENCY.
- **it was taken away on purpose**: Silence the alert for a day in Alertmanager: then nobody looks for it any more.

## Mitigate

Start it. It keeps no state, and may be started at any time:

    freshet run server

## Verify

`curl -s localhost:6566/readyz` says `ok`. The alert ends at the next scrape.
""",
    "FreshetServerErrors": """\
## Meaning

The server is up, and answers requests with 5xx: it could not do what was asked. The label `endpoint` says what that
is. What clients do wrong (4xx) is not counted.

## Impact

Clients get no features, or, of `events`, cannot be sure that their events are in Kafka, and send them again. Models
use their defaults, or fail.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. {server}

- **`online store` is DOWN**: That is it, for all but `events`: Redis does not answer at the address shown. Mend it.
- **`kafka` is DOWN, the endpoint is `events`**: Kafka takes no events. Mend it.
- **both are ok, answers are 503 after FRESHET_SERVER_DEADLINE (1 s)**: Redis is slow: its processor, its memory
  (swap), a slow command of somebody else (`redis-cli slowlog get 10`), or the network.
- **both are ok, answers are 503 at once**: More is asked at once than FRESHET_SERVER_CONCURRENCY (256 a worker). See
  the dashboard: if requests are many, add workers; if they are slow, see FreshetOnlineLatency.md.
- **answers are 500**: A fault of the server's own. Its log has the exception.

## Mitigate

More workers, as many as there are processors. The one that runs is stopped before:

    freshet run server --workers 2

If it began with a deploy of the server, take that back.

## Verify

The dashboard's `Share of errors` is 0 again. The alert ends ten minutes after the last errors.
""",
    "FreshetOnlineLatency": """\
## Meaning

Of the requests for features so many took the server longer than {latency}, or were answered with 5xx, that the
allowance of the declared onlineLatency ({latency_objective}) is used up too fast. Both a long and a short window say
so: it lasts, and it is not over. A page says that it is gone within days, a ticket that it is gone in a month.

## Impact

Whoever asks waits longer than was promised, and may give up. Values are not affected.

{concerned}

## Check

{where}

    freshet status

Then look on the dashboard whether answers are late (`Duration of requests`) or errors (`Share of errors`). {server}

- **errors**: Go on with FreshetServerErrors.md.
- **late, with more requests than usual**: The workers have too much to do: their processors are busy. Add workers.
- **late, with as many requests as usual**: Redis is slower than it was: its processor, its memory (swap), a slow
  command of somebody else (`redis-cli slowlog get 10`), or the network: `redis-cli --latency` from the server's
  machine.
- **late at the same times**: Something else is on that machine then: a backup, Redis that saves, a training job.
- **late since a deploy of clients**: They ask for more entities or features at once. `freshet_served_values_total` by
  requests says how many; many small requests at once are better than one large.
- **always a little**: The declared latency is tighter than network and machine give. Declare what is needed.

## Mitigate

More workers, as many as there are processors. The one that runs is stopped before:

    freshet run server --workers 2

If the target itself is wrong, change `onlineLatency` and run `freshet apply`.

## Verify

On the dashboard `p99` is below its line, and `Answered in time, 1 h` rises. The alert ends once the short window is
within what is allowed: for a page after minutes, for a ticket after hours.
""",
    "FreshetServedStale": """\
## Meaning

Of this view's values that the online store has, the server gives out many with the status OUTSIDE_MAX_AGE, and has for
minutes. It does so where the view's ttl has passed, or where events of the entity may have waited for longer than the
declared freshness ({declared}), by what the materializer last wrote of its progress. An entity that is merely idle is
not meant.

## Impact

Clients get these values, and are told that they are old. A client that does not look at statuses uses them as if they
were fresh.

{concerned}

## Check

{where}

    freshet status

The first table says of each part whether it answers, and if not, why. The third table says how the view keeps up.

{parts}
- **the view is STALLED, or its stream `stop` or `stall`**: Go on with FreshetStopped.md.
- **the view is lagging**: Go on with FreshetLag.md.
- **the view is fresh or idle, the share is about that of some partitions**: One of them is stuck or is not written of:
  `stop (1 of 8)` in the second table says of how many, `freshet status --json` of which. See FreshetStopped.md.
- **the view is fresh or idle, all its values are old**: The server reads another Redis or database than the
  materializer writes to, or its clock is wrong: compare FRESHET_ONLINE_STORE of both, and `date` on both machines.
- **the view has a `ttl:`, and only idle entities are old**: They are kept since another view of the same entity has a
  longer ttl. Nothing is wrong: clients ask for entities that had no events for so long. Declare a longer `ttl:`.

## Mitigate

{restart}

## Verify

The dashboard's `Values served` shows no more of `outside_max_age` for the view. The alert ends ten minutes later.
""",
}

CAUSES: Mapping[Cause, str] = {
    Cause.VALUE_MISMATCH: """\
Both stores have one version of a row with different values; or both differ from what the declared SQL makes of the
archived events; or a value is not as `expect:` says.
First run `freshet check` again after two minutes: a mismatch that is gone, and stays away in one more, was of a race.
If it is there still, and the evidence has an online and an offline value, somebody else wrote online: find the writer,
then `freshet repair`. If the check is one of `expect:`, look at the events of the entity: the producers' data changed,
or the limit is wrong. Else the rows themselves were made wrong: keep the evidence, train no model on them, move the
recovery folder aside and start `freshet run materializer --rebuild`, which makes state anew from the archive.""",
    Cause.NULL_ONLINE: """\
The online store has null where the offline store has a value; or nulls are more than `expect:` allows.
`freshet repair` writes the offline values again. For `expect:`, look at the producers' data.""",
    Cause.DTYPE: """\
A stored value is not of the declared type: another program writes to the same keys.
Find that writer, then `freshet repair`.""",
    Cause.LOST_ONLINE_WRITE: """\
A row was committed, but never came to be online.
`freshet repair`. Then look at Redis: evictions (`maxmemory-policy` must be noeviction), a failover that lost writes,
a second program that deletes.""",
    Cause.OUT_OF_ORDER_OVERWRITE: """\
A row online is older than it was: something else writes there, or an old copy was restored.
Stop the other writer, such as a `feast materialize` of the same views, then `freshet repair`.""",
    Cause.MISSING_ENTITY: """\
An entity that was online is gone.
`freshet repair`. Then look at Redis for evictions (`maxmemory-policy` must be noeviction) and for who deletes.""",
    Cause.EXPIRED_TTL: """\
The online store keeps a row longer than its view's ttl allows, as rows do that were written before the view had this
ttl.
`freshet repair` sets the expiry.""",
    Cause.STALE_ONLINE: """\
The online store is as it was some time ago, or empty; or events wait for longer than the freshness target.
If `freshet status` shows messages that wait, go on with FreshetLag.md. If none wait, and the evidence has
`waiting_count=0` with `burning`, no row is wrong: too many looks were late, as in an outage that is over, and the alert
ends some five minutes after it. Else the store lost writes, as by a failover: `freshet repair`.""",
    Cause.LOST_OFFLINE_WRITE: """\
An online row is not in the offline store, though committed; or a parquet part is gone; or Kafka has an offset as
committed that is not durable.
Find out who deletes below the offline store, or commits in the group {group}. Bring missing parts back from a copy.
Models should not be trained on the time in question until then.""",
    Cause.PARTIAL_BATCH: """\
There are fewer offline rows, or archived events, than were committed.
The same as for lost_offline_write: parts were removed or cut short. Bring them back from a copy.""",
    Cause.DUPLICATE_OFFLINE: """\
One version of a row stands more than once in the offline store, or there are more rows than were committed.
Somebody copied parts into the folder: remove the copies; the evidence names the part. Until then training data counts
these rows twice.""",
    Cause.CLOCK_SKEW: """\
A row is of a time that has not come: the clock of whoever made its event runs ahead.
The evidence has the event's partition and offset: tell its producer. The rows become right once that time has come.""",
    Cause.SCHEMA_DRIFT: """\
Columns of the offline store, or the view in Feast's registry, are not those of the declaration.
`freshet plan` shows what differs, `freshet apply` registers the declaration.""",
}
