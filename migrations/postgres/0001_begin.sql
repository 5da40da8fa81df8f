-- The first tables. They are part of the interface: whoever reads them at a SQL prompt finds their
-- meaning in the comments (\d+ in psql).

create table orgstream.org (
    singleton boolean primary key default true check (singleton),
    org_id text not null,
    bound_at timestamptz not null default now()
);
comment on table orgstream.org is 'The one Salesforce org that this store belongs to. Positions of another org mean nothing here.';
comment on column orgstream.org.singleton is 'Always true: makes a second row impossible.';

create table orgstream.subscription (
    org_id text not null,
    name text not null,
    topic text not null,
    position bytea,
    position_at timestamptz,
    epoch bigint not null default 0,
    write_number bigint not null default 0,
    holder text,
    taken_at timestamptz,
    begun_at timestamptz,
    begun_with bytea,
    state text not null default 'new',
    state_detail text,
    state_at timestamptz,
    caught_up_at timestamptz,
    received bigint not null default 0,
    finished bigint not null default 0,
    created_at timestamptz not null default now(),
    primary key (org_id, name)
);
comment on table orgstream.subscription is 'One row for each subscription: where it stands, who runs it, how it is.';
comment on column orgstream.subscription.position is 'Replay ID up to which every event is finished; null until the first. Opaque: never compute with it.';
comment on column orgstream.subscription.position_at is 'When the position was last written.';
comment on column orgstream.subscription.epoch is 'Grows each time a worker takes the subscription over; a write under an older epoch is refused.';
comment on column orgstream.subscription.write_number is 'Grows with each write under one epoch, so that a late write never overtakes a newer one.';
comment on column orgstream.subscription.holder is 'The process that took it over last; random for each start.';
comment on column orgstream.subscription.begun_at is 'When its first stream was about to begin at LATEST. With no position, what came since then was perhaps missed.';
comment on column orgstream.subscription.begun_with is 'First replay ID that came after a start at LATEST. With no position, the next run resumes after it.';
comment on column orgstream.subscription.state is 'connecting, live, paused, reconnecting, blocked, stopped; new before the first run.';
comment on column orgstream.subscription.state_detail is 'Why, and the cure where a person has to act.';
comment on column orgstream.subscription.caught_up_at is 'Last moment with a live stream and nothing unfinished.';
comment on column orgstream.subscription.received is 'Events received, in all; repeats count.';
comment on column orgstream.subscription.finished is 'Events handled by every handler, or parked, in all.';

create table orgstream.finished_ahead (
    org_id text not null,
    subscription text not null,
    handler text not null,
    identity text not null,
    primary key (org_id, subscription, handler, identity),
    foreign key (org_id, subscription) references orgstream.subscription (org_id, name)
        on update cascade on delete cascade
);
comment on table orgstream.finished_ahead is 'Events above the position that a handler has finished already and is not given again.';

create table orgstream.schema (
    id text primary key,
    json text not null,
    fetched_at timestamptz not null default now()
);
comment on table orgstream.schema is 'Avro schemas fetched from the org, by schema ID.';

create table orgstream.dead_letter (
    id bigint generated always as identity primary key,
    org_id text not null,
    subscription text not null,
    topic text not null,
    handler text,
    identity text not null,
    reason text not null,
    error text not null,
    attempts integer not null,
    event_uuid text not null,
    replay_id bytea,
    schema_id text not null,
    payload bytea not null,
    record_ids text[] not null,
    record_name text,
    received_at timestamptz not null,
    parked_at timestamptz not null default now(),
    state text not null default 'open',
    resolved_at timestamptz
);
create unique index dead_letter_event
    on orgstream.dead_letter (org_id, subscription, coalesce(handler, ''), identity);
create index dead_letter_open
    on orgstream.dead_letter (org_id, subscription, id) where state = 'open';
comment on table orgstream.dead_letter is 'Parked events: kept as received until a person retries or discards them.';
comment on column orgstream.dead_letter.handler is 'The handler that could not handle it; null where it could not be decoded for anyone.';
comment on column orgstream.dead_letter.identity is 'Names the event; the id of its CloudEvent.';
comment on column orgstream.dead_letter.reason is 'rejected, exhausted, undecodable, schema_refused, schema_unavailable.';
comment on column orgstream.dead_letter.error is 'What went wrong, for a person.';
comment on column orgstream.dead_letter.attempts is 'How often it was handed over.';
comment on column orgstream.dead_letter.payload is 'The Avro datum as received; schema_id names the schema that wrote it.';
comment on column orgstream.dead_letter.record_ids is 'Records it concerns: later events of theirs wait behind it.';
comment on column orgstream.dead_letter.state is 'open, handled, discarded.';

create table orgstream.hole (
    id bigint generated always as identity primary key,
    org_id text not null,
    subscription text not null,
    kind text not null check (kind in ('lost', 'gap')),
    reason text not null,
    from_replay_id bytea,
    to_replay_id bytea,
    entity text,
    record_ids text[] not null,
    record_count bigint not null,
    explanation text not null,
    recorded_at timestamptz not null default now(),
    acknowledged_at timestamptz
);
-- A lost stretch has one open end at a time: recording it again after a restart finds the same row.
create unique index hole_open_end
    on orgstream.hole (org_id, subscription, coalesce(from_replay_id, ''::bytea))
    where kind = 'lost' and to_replay_id is null;
create index hole_open
    on orgstream.hole (org_id, subscription, id) where acknowledged_at is null;
comment on table orgstream.hole is 'What was missed: a stretch of the bus (lost), or records whose change came without its content (gap).';
comment on column orgstream.hole.from_replay_id is 'Last place known before it; null where there is none.';
comment on column orgstream.hole.to_replay_id is 'First place known after it; null until the next event or keepalive.';
comment on column orgstream.hole.record_ids is 'Records of a gap; of a very large one the first thousand.';
comment on column orgstream.hole.record_count is 'How many records the gap named.';
comment on column orgstream.hole.acknowledged_at is 'When a person acknowledged it; shown as open until then.';

create table orgstream.position_mark (
    org_id text not null,
    subscription text not null,
    at timestamptz not null,
    position bytea not null,
    primary key (org_id, subscription, at),
    foreign key (org_id, subscription) references orgstream.subscription (org_id, name)
        on update cascade on delete cascade
);
comment on table orgstream.position_mark is 'Which position belonged to which time, about one a minute, so that one can replay from a time.';
comment on column orgstream.position_mark.at is 'Commit time of the newest event at or below the position.';

create table orgstream.credential (
    key text primary key,
    ciphertext bytea,
    holder text,
    locked_until timestamptz,
    updated_at timestamptz
);
comment on table orgstream.credential is 'Rotated refresh tokens, encrypted under ORGSTREAM_ENCRYPTION_KEY. One process at a time refreshes.';
comment on column orgstream.credential.ciphertext is 'Version byte, nonce, AES-256-GCM ciphertext and tag; null until a token was rotated.';
comment on column orgstream.credential.locked_until is 'Until when holder alone may refresh.';
