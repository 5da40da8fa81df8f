-- Keeps a table of accounts as they are now, from the topic /data/AccountChangeEvent.
--
--     [[subscription]]
--     name = "accounts"
--     topic = "Account"
--
--     [[subscription.handler]]
--     name = "account-table"
--     type = "postgres"
--     mode = "call"
--     function = "crm.on_account"

create schema if not exists crm;

create table if not exists crm.account (
    id text primary key,
    -- Whatever was said of it, the newest value of each field.
    fields jsonb not null,
    -- Columns to search by are made of it.
    name text generated always as (fields ->> 'Name') stored,
    -- It has changed, and the org did not tell how: read it anew.
    stale boolean not null default false,
    changed_at timestamptz not null
);

create or replace function crm.on_account(event jsonb) returns void language plpgsql as $$
declare
    header jsonb := event -> 'data' -> 'ChangeEventHeader';
    said jsonb := (event -> 'data') - 'ChangeEventHeader';
    change text := header ->> 'changeType';
    at timestamptz := event ->> 'time';
begin
    -- What is not for this function: the event is parked, and this text is not logged.
    if header ->> 'entityName' is distinct from 'Account' then
        raise exception 'not an account' using errcode = 'OS001';
    end if;

    -- An event names several records where they were changed together.
    if change in ('CREATE', 'UPDATE', 'UNDELETE') then
        insert into crm.account as a (id, fields, changed_at)
        select r.id, said, at from jsonb_array_elements_text(header -> 'recordIds') as r (id)
        on conflict (id) do update set fields = a.fields || excluded.fields, changed_at = excluded.changed_at;
    elsif change in ('DELETE', 'GAP_DELETE') then
        delete from crm.account
        where id in (select jsonb_array_elements_text(header -> 'recordIds'));
    else
        -- GAP_CREATE, GAP_UPDATE, GAP_UNDELETE, GAP_OVERFLOW: a change without its content. An overflow names no record.
        update crm.account set stale = true, changed_at = at
        where change = 'GAP_OVERFLOW' or id in (select jsonb_array_elements_text(header -> 'recordIds'));
    end if;
end
$$;
