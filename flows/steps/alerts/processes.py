"""Alerts about the processes, and what all of them do together."""

from typing import Any

from freshet.flows.steps.alerts.about import QUIET_AFTER, About
from freshet.flows.steps.alerts.rule import Alert, Case, humanized_count, number
from freshet.schemas import units


def of_project(about: About) -> list[Alert]:
    """Return the alerts about the processes, and what all of them do together."""
    of_views, view = about.any_view, about.one_view
    quiet_s = QUIET_AFTER.total_seconds()
    epoch_s = about.epoch.total_seconds()
    here = ',job="j",instance="i"'
    on_its_own = "and on (job, instance)"
    checkpoint = "freshet_checkpoint_last_success_timestamp_seconds"
    entities = f"freshet_state_entities{{{of_views}}}"
    round_ = "freshet_validator_last_success_timestamp_seconds"
    errors = f"freshet_validator_errors_total{{{of_views}}}"
    sampled = "freshet_lag_sampled_timestamp_seconds"
    sums = f'kafka_consumergroup_lag_sum{{consumergroup=~"{about.group}"}}'
    one_sum = f'kafka_consumergroup_lag_sum{{consumergroup="{about.group}",topic="t"{here}}}'
    one_entities = f'freshet_state_entities{{feature_view="{view}"{here}}}'
    one_errors = f'freshet_validator_errors_total{{feature_view="{view}"{here}}}'
    place = here.removeprefix(",")
    others = f'freshet_state_entities{{feature_view="of_another_project"{here}}}'
    size = about.volume.bytes_per_day

    def alert(name: str, expr: str, hold: str, severity: str, summary: str, description: str, **cases: Any) -> Alert:
        return Alert(name, expr, hold, severity, about.project, summary, description, about.views, **cases)

    return [
        alert(
            "FreshetCheckpointOld",
            f"sum(max by (topic) ({sums})) > 0 and on ()"
            f" time() - max({checkpoint} {on_its_own} {entities}) > {number(quiet_s + 3 * epoch_s)}",
            "1m",
            "page",
            f"{{{{ $value | humanize }}}} messages wait, and there was no checkpoint for {units.spell(QUIET_AFTER)}",
            "The materializer runs, but what it has read does not get durable: a store or Kafka does not answer, or a"
            " disk is full. Its /healthz says what it waits for.",
            fires=(
                Case(
                    {f"{checkpoint}{{{place}}}": "0x400", one_entities: "9x400", one_sum: "1500x400"},
                    _at(epoch_s * 3 + 300),
                    {},
                    "1.5k",
                    _step(epoch_s),
                ),
            ),
            silent=(
                Case(  # a night without an event
                    {f"{checkpoint}{{{place}}}": "0x400", one_entities: "9x400", one_sum: "0x400"},
                    _at(epoch_s * 3 + 300),
                    interval=_step(epoch_s),
                ),
                Case({f"{checkpoint}{{{place}}}": "0+15x40", one_entities: "9x40", one_sum: "1500x40"}, "8m"),
            ),
        ),
        alert(
            "FreshetMaterializerDead",
            f"absent({entities})",
            "1m",
            "page",
            "the materializer gives no metrics: it is down, or Prometheus cannot reach it",
            "Nothing of it was heard for a minute. While it is down no feature changes, online or offline. Its last"
            " line says why it ended.",
            fires=(Case({others: "9x20"}, "3m"), Case({one_entities: "9x4 stale"}, "5m")),
            silent=(Case({one_entities: "9x20"}, "3m"),),
            dashboard="freshet-overview",
        ),
        alert(
            "FreshetValidatorDead",
            f"absent({errors})",
            "1m",
            "page",
            "the validator gives no metrics: it is down, or Prometheus cannot reach it",
            "Nobody looks whether both stores agree, and nothing is known of the lag, since the validator exports it:"
            " alerts about either stay silent until it is back.",
            fires=(
                Case({f'freshet_validator_errors_total{{feature_view="of_another_project"{here}}}': "0x20"}, "3m"),
                Case({one_errors: "0x4 stale"}, "5m"),
            ),
            silent=(Case({one_errors: "0x20"}, "3m"),),
            dashboard="freshet-validation",
        ),
        alert(
            "FreshetValidatorFailing",
            f"time() - max({round_} {on_its_own} {errors}) > 300",
            "1m",
            "page",
            "for more than five minutes no round of the validator has succeeded",
            "It runs, but cannot look: Kafka, the online store or the offline store does not answer it, or its judge"
            " fails. Findings stand as they were. Its /healthz says why.",
            fires=(Case({f"{round_}{{{place}}}": "0+15x20 300x80", one_errors: "0x100"}, "15m"),),
            silent=(
                Case({f"{round_}{{{place}}}": "0+15x100", one_errors: "0x100"}, "15m"),
                Case({f"{round_}{{{place}}}": "0+15x20 300x10 450+15x70", one_errors: "0x100"}, "15m"),
            ),
            dashboard="freshet-validation",
        ),
        alert(
            "FreshetLagUnknown",
            f"absent({sums}) or time() - max({sampled} {on_its_own} {sums}) > {number(quiet_s)}",
            "1m",
            "page",
            "nothing is known of the lag: Kafka does not answer, or nobody exports it",
            "Kafka has not told for a minute how far the materializer is, so no alert about lag can fire. Most often"
            " Kafka is away, and then the materializer waits for it, too, and ends after FRESHET_PATIENCE."
            " `freshet status` asks Kafka itself.",
            fires=(
                Case({f"{sampled}{{{place}}}": "0x20"}, "3m"),  # Kafka went away
                Case({f"{sampled}{{{place}}}": "0x20", one_sum: "0x20"}, "4m"),  # the exporter stands still
            ),
            silent=(Case({f"{sampled}{{{place}}}": "0+15x20", one_sum: "0x20"}, "4m"),),
            dashboard="freshet-lag",
        ),
        alert(
            "FreshetOfflineVolume",
            f"sum(increase(freshet_offline_bytes_total{{{of_views}}}[1d])) > {number(size)}",
            "15m",
            "ticket",
            f"{{{{ $value | humanize }}}}B of parquet in a day; {about.volume} is declared",
            "The offline store grows faster than the declaration says. `freshet plan` says which view makes how much of"
            " an event.",
            fires=(
                Case(
                    {
                        f'freshet_offline_bytes_total{{feature_view="{view}",job="j",instance="{one}"}}': (
                            f"0x2 {number(size)}x30"
                        )
                        for one in ("1", "2")
                    },
                    "25m",
                    {},
                    humanized_count(2 * size),
                    "1m",
                ),
            ),
            silent=(
                Case(
                    {f'freshet_offline_bytes_total{{feature_view="{view}"{here}}}': f"0x2 {number(size / 2)}x30"},
                    "25m",
                    interval="1m",
                ),
            ),
        ),
    ]


def _step(epoch_s: float) -> str:
    """Return how far apart the samples of a case about checkpoints may be: some four hundred must cover it."""
    return f"{max(15, int(epoch_s / 60))}s"


def _at(seconds: float) -> str:
    return f"{int(seconds)}s"
