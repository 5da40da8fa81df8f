-- For another database than the store's, where an event may come again after a crash: remembers what was done.
--
--     [[subscription.handler]]
--     name = "elsewhere"
--     type = "postgres"
--     mode = "call"
--     function = "crm.once"
--     database_url = "${REPORTS_URL}"

create schema if not exists crm;

create table if not exists crm.handled (
    subscription text not null,
    id text not null,
    at timestamptz not null default now(),
    primary key (subscription, id)
);

create table if not exists crm.change_count (
    entity text primary key,
    changes bigint not null
);

create or replace function crm.once(event jsonb) returns void language plpgsql as $$
begin
    -- Waits for a first attempt that is still under way, too.
    insert into crm.handled (subscription, id) values (event ->> 'subscription', event ->> 'id')
    on conflict do nothing;
    if not found then
        return;
    end if;

    -- The work itself.
    insert into crm.change_count as c (entity, changes)
    values (coalesce(event -> 'data' -> 'ChangeEventHeader' ->> 'entityName', event ->> 'topic'), 1)
    on conflict (entity) do update set changes = c.changes + 1;
end
$$;
