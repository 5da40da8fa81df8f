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

-- What was known, with what is said now. Of a compound field (BillingAddress) only the components are said that have
-- changed: the others stay.
create or replace function crm.merged(known jsonb, said jsonb) returns jsonb language sql immutable as $$
    select known || coalesce(jsonb_object_agg(s.key, case
        when jsonb_typeof(s.value) = 'object' and jsonb_typeof(known -> s.key) = 'object'
        then (known -> s.key) || s.value
        else s.value
    end), '{}')
    from jsonb_each(said) as s
$$;

create or replace function crm.on_account(event jsonb) returns void language plpgsql as $$
declare
    header jsonb := event -> 'data' -> 'ChangeEventHeader';
    said jsonb := (event -> 'data') - 'ChangeEventHeader';
    change text := header ->> 'changeType';
    at timestamptz := event ->> 'time';
    -- An event names several records where they were changed together.
    ids text[] := array(select jsonb_array_elements_text(header -> 'recordIds'));
    -- Of a long text only the difference may be told (`diffs` of the header): the text itself is not in the event.
    differs boolean := coalesce(jsonb_array_length(header -> 'diffFields') > 0, false);
begin
    -- What is not for this function: the event is parked, and this text is not logged.
    if header ->> 'entityName' is distinct from 'Account' then
        raise exception 'not an account' using errcode = 'OS001';
    end if;

    if change = 'GAP_OVERFLOW' or exists (select from unnest(ids) as i (id) where i.id like '%*') then
        -- A change of nobody knows which accounts: no record is named, or `001*`.
        update crm.account set stale = true, changed_at = at;
    elsif change in ('CREATE', 'UPDATE', 'UNDELETE') then
        insert into crm.account as a (id, fields, stale, changed_at)
        select i.id, said, differs, at from unnest(ids) as i (id)
        on conflict (id) do update set fields = crm.merged(a.fields, excluded.fields),
            stale = a.stale or excluded.stale, changed_at = excluded.changed_at;
    elsif change in ('DELETE', 'GAP_DELETE') then
        delete from crm.account where id = any (ids);
    else
        -- GAP_CREATE, GAP_UPDATE, GAP_UNDELETE: a change without its content, perhaps of an account that is not here yet.
        insert into crm.account as a (id, fields, stale, changed_at)
        select i.id, '{}', true, at from unnest(ids) as i (id)
        on conflict (id) do update set stale = true, changed_at = excluded.changed_at;
    end if;
end
$$;
