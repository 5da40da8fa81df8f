-- What migrations/postgres/0004_observe.sql adds; its comments say what each column means.

create table subscription_sample (
    org_id text not null,
    subscription text not null,
    at integer not null,
    lag_seconds real,
    received integer not null default 0,
    parked integer not null default 0,
    primary key (org_id, subscription, at),
    foreign key (org_id, subscription) references subscription (org_id, name)
        on update cascade on delete cascade
) strict, without rowid;
create index subscription_sample_at on subscription_sample (at);

create table state_change (
    id integer primary key autoincrement,
    org_id text not null,
    subscription text not null,
    at integer not null,
    state text not null,
    detail text,
    rpc_id text,
    replay_id blob,
    worker text,
    epoch integer not null,
    foreign key (org_id, subscription) references subscription (org_id, name)
        on update cascade on delete cascade
) strict;
create index state_change_newest on state_change (org_id, subscription, id);

create table worker_snapshot (
    holder text primary key references worker (holder) on delete cascade,
    at integer not null,
    body text not null
) strict;

create table allocation (
    org_id text not null,
    at integer not null,
    max integer not null,
    remaining integer not null,
    primary key (org_id, at)
) strict, without rowid;

alter table org add column limits_asked_at integer;

alter table dead_letter add column committed_at integer;
alter table dead_letter add column commit_number integer;

alter table subscription add column paused_to_rename_at integer;
