-- The first tables: those of migrations/postgres, whose comments say what each column means. Times are
-- milliseconds since 1970 (select datetime(position_at / 1000, 'unixepoch') ...), lists are JSON.

create table org (
    singleton integer primary key default 1 check (singleton = 1),
    org_id text not null,
    bound_at integer not null
) strict;

create table subscription (
    org_id text not null,
    name text not null,
    topic text not null,
    position blob,
    position_at integer,
    epoch integer not null default 0,
    write_number integer not null default 0,
    holder text,
    taken_at integer,
    begun_at integer,
    begun_with blob,
    state text not null default 'new',
    state_detail text,
    state_at integer,
    caught_up_at integer,
    received integer not null default 0,
    finished integer not null default 0,
    created_at integer not null,
    primary key (org_id, name)
) strict;

create table finished_ahead (
    org_id text not null,
    subscription text not null,
    handler text not null,
    identity text not null,
    primary key (org_id, subscription, handler, identity),
    foreign key (org_id, subscription) references subscription (org_id, name)
        on update cascade on delete cascade
) strict, without rowid;

create table schema (
    id text primary key,
    json text not null,
    fetched_at integer not null
) strict;

-- autoincrement: the number of a deleted dead letter or hole is never given to another.
create table dead_letter (
    id integer primary key autoincrement,
    org_id text not null,
    subscription text not null,
    topic text not null,
    handler text,
    identity text not null,
    reason text not null,
    error text not null,
    attempts integer not null,
    event_uuid text not null,
    replay_id blob,
    schema_id text not null,
    payload blob not null,
    record_ids text not null,
    record_name text,
    received_at integer not null,
    parked_at integer not null,
    state text not null default 'open',
    resolved_at integer
) strict;
create unique index dead_letter_event
    on dead_letter (org_id, subscription, coalesce(handler, ''), identity);
create index dead_letter_open
    on dead_letter (org_id, subscription, id) where state = 'open';

create table hole (
    id integer primary key autoincrement,
    org_id text not null,
    subscription text not null,
    kind text not null check (kind in ('lost', 'gap')),
    reason text not null,
    from_replay_id blob,
    to_replay_id blob,
    entity text,
    record_ids text not null,
    record_count integer not null,
    explanation text not null,
    recorded_at integer not null,
    acknowledged_at integer
) strict;
-- A lost stretch has one open end at a time: recording it again after a restart finds the same row.
create unique index hole_open_end
    on hole (org_id, subscription, coalesce(from_replay_id, x''))
    where kind = 'lost' and to_replay_id is null;
create index hole_open
    on hole (org_id, subscription, id) where acknowledged_at is null;

create table position_mark (
    org_id text not null,
    subscription text not null,
    at integer not null,
    position blob not null,
    primary key (org_id, subscription, at),
    foreign key (org_id, subscription) references subscription (org_id, name)
        on update cascade on delete cascade
) strict, without rowid;

create table credential (
    key text primary key,
    ciphertext blob,
    holder text,
    locked_until integer,
    updated_at integer
) strict;
