-- What migrations/postgres/0002_lease.sql adds; its comments say what each column means.

alter table subscription add column lease_until integer;
alter table subscription add column paused_at integer;
-- Position that the bus does not know any more; null once there is a position again.
alter table subscription add column lost_position blob;
alter table subscription add column begin_from text check (begin_from in ('earliest', 'latest'));
alter table subscription add column position_time integer;
alter table subscription add column position_transaction text;
alter table subscription add column position_event blob;
alter table subscription add column asked integer not null default 0;

create table worker (
    holder text primary key,
    name text not null,
    version text not null,
    started_at integer not null,
    seen_at integer not null,
    lives_until integer not null,
    subscriptions text not null default '[]',
    refused text not null default '[]'
) strict;

create table former_name (
    org_id text not null,
    name text not null,
    subscription text not null,
    renamed_at integer not null,
    primary key (org_id, name),
    foreign key (org_id, subscription) references subscription (org_id, name)
        on update cascade on delete cascade
) strict;

alter table dead_letter add column place integer;
alter table dead_letter add column unit text;
alter table dead_letter add column replayed integer not null default 0 check (replayed in (0, 1));
alter table dead_letter add column sealed integer not null default 0 check (sealed in (0, 1));
alter table dead_letter add column retry_asked_at integer;
alter table dead_letter add column ahead integer not null default 0;
alter table dead_letter add column ahead_until blob;

alter table hole add column from_time integer;
alter table hole add column to_time integer;

alter table position_mark add column received integer;

create table command (
    id integer primary key autoincrement,
    org_id text not null,
    subscription text not null,
    kind text not null,
    arguments text not null default '{}',
    state text not null default 'asked'
        check (state in ('asked', 'running', 'done', 'failed', 'withdrawn')),
    progress text not null default '{}',
    outcome text,
    asked_at integer not null,
    asked_by text,
    begun_at integer,
    ended_at integer,
    foreign key (org_id, subscription) references subscription (org_id, name)
        on update cascade on delete cascade
) strict;
create index command_open on command (org_id, subscription, id)
    where state in ('asked', 'running');
