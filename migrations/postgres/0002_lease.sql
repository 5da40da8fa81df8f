-- Several workers, dead letters that hold their records, and what people ask of a subscription's owner.
-- Safe while the previous release runs: columns are added, none is taken away.

alter table orgstream.subscription
    add column lease_until timestamptz,
    add column paused_at timestamptz,
    add column lost_position bytea,
    add column begin_from text check (begin_from in ('earliest', 'latest')),
    add column position_time timestamptz,
    add column position_transaction text,
    add column position_event bytea,
    add column asked bigint not null default 0;
comment on column orgstream.subscription.holder is 'The process that holds the lease, or held it last (worker.holder); random for each start.';
comment on column orgstream.subscription.lease_until is 'Until when holder alone may run it, by this server''s clock; null where nobody holds it.';
comment on column orgstream.subscription.paused_at is 'When a person paused it; null while it may run.';
comment on column orgstream.subscription.begin_from is 'Where a rewind told it to begin; counts while there is no position.';
comment on column orgstream.subscription.lost_position is 'Position that the bus does not know any more; null once there is a position again. What had come after it and is not finished is lost if its process ends.';
comment on column orgstream.subscription.position_time is 'When the event at the position was committed, or the keepalive received: how near the position is to leaving the bus.';
comment on column orgstream.subscription.position_transaction is 'Transaction of the change event at the position; null after a keepalive or a platform event, empty where a rewind put the position there and nobody knows. More events of it, if any come, are not the whole of it.';
comment on column orgstream.subscription.position_event is 'Replay ID of the newest event at or below the position, which may be that of a keepalive; null where that is not known.';
comment on column orgstream.subscription.asked is 'Grows whenever a person asks something of the owner: look at dead_letter and command anew.';

create table orgstream.worker (
    holder text primary key,
    name text not null,
    version text not null,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    lives_until timestamptz not null,
    subscriptions text[] not null default '{}',
    refused jsonb not null default '[]'
);
comment on table orgstream.worker is 'Processes that run subscriptions. Those that live share them out, each within what it can run.';
comment on column orgstream.worker.holder is 'Random for each start of a process.';
comment on column orgstream.worker.name is 'The dyno, or host and process ID.';
comment on column orgstream.worker.lives_until is 'Counted as alive until then, by this server''s clock.';
comment on column orgstream.worker.subscriptions is 'Names of the subscriptions it can run: those of its configuration that it was not refused.';
comment on column orgstream.worker.refused is 'Those of its configuration that it cannot begin: name, topic, why.';

create table orgstream.former_name (
    org_id text not null,
    name text not null,
    subscription text not null,
    renamed_at timestamptz not null default now(),
    primary key (org_id, name),
    foreign key (org_id, subscription) references orgstream.subscription (org_id, name)
        on update cascade on delete cascade
);
comment on table orgstream.former_name is 'Names that a person gave up by `orgstream rename`: a configuration that still has one must not begin it anew.';
comment on column orgstream.former_name.subscription is 'What it is called now.';

alter table orgstream.dead_letter
    add column place bigint,
    add column unit text,
    add column replayed boolean not null default false,
    add column sealed boolean not null default false,
    add column retry_asked_at timestamptz,
    add column ahead boolean not null default false,
    add column ahead_until bytea;
comment on column orgstream.dead_letter.place is 'Order among the dead letters of one handler, oldest first; null is its id.';
comment on column orgstream.dead_letter.unit is 'Dead letters of one handler and unit are handed over together: a transaction.';
comment on column orgstream.dead_letter.replayed is 'True where a side replay brought it: it says so when it is tried again.';
comment on column orgstream.dead_letter.sealed is 'True where the payload is encrypted under ORGSTREAM_ENCRYPTION_KEY, because a handler is not shown all of it: version byte, nonce, AES-256-GCM ciphertext and tag.';
comment on column orgstream.dead_letter.retry_asked_at is 'When a person asked for another attempt; null once that was made or withdrawn.';
comment on column orgstream.dead_letter.ahead is 'Its event lies above the position, so that a stream that begins there brings it once more.';
comment on column orgstream.dead_letter.ahead_until is 'The position that a rewind left: at the latest the event lies there. Null where it lay above the position all along.';
comment on column orgstream.dead_letter.reason is 'rejected, exhausted, undecodable, schema_refused, schema_unavailable, unreadable, parked_behind.';
comment on column orgstream.dead_letter.record_ids is 'Records it concerns, or the value of its key: later events of theirs wait behind it.';

alter table orgstream.hole
    add column from_time timestamptz,
    add column to_time timestamptz;
comment on column orgstream.hole.from_time is 'When the last place known before it was committed or received: nothing older is missing.';
comment on column orgstream.hole.to_time is 'When what ended it was committed or received; of a gap, when the change was committed.';
comment on column orgstream.hole.reason is 'expired_replay_id, latest_before_first_response, skipped_by_rewind, perhaps_skipped_by_rewind; of a gap gap_event, overflow, wildcard.';
comment on column orgstream.hole.acknowledged_at is 'When a person acknowledged it, or a rewind proved to have skipped nothing; shown as open until then.';

alter table orgstream.position_mark add column received bigint;
comment on column orgstream.position_mark.received is 'Events received, in all, by then: two marks tell how many come in how long.';

create table orgstream.command (
    id bigint generated always as identity primary key,
    org_id text not null,
    subscription text not null,
    kind text not null,
    arguments jsonb not null default '{}',
    state text not null default 'asked'
        check (state in ('asked', 'running', 'done', 'failed', 'withdrawn')),
    progress jsonb not null default '{}',
    outcome text,
    asked_at timestamptz not null default now(),
    asked_by text,
    begun_at timestamptz,
    ended_at timestamptz,
    foreign key (org_id, subscription) references orgstream.subscription (org_id, name)
        on update cascade on delete cascade
);
create index command_open on orgstream.command (org_id, subscription, id)
    where state in ('asked', 'running');
comment on table orgstream.command is 'What people ask of the process that runs a subscription: it carries the row out. A withdrawn row is stopped.';
comment on column orgstream.command.kind is 'rewind, replay.';
comment on column orgstream.command.arguments is 'Where from, where to, for which handler.';
comment on column orgstream.command.progress is 'How far it is; a later owner goes on from there.';
comment on column orgstream.command.outcome is 'How it ended, for a person.';
