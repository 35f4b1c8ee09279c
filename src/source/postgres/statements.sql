-- Lakehead: records statements of DDL in the change stream, in the transaction that they are part of.
--
-- For a superuser, once in each database: lakehead check --ddl-script | psql --dbname=…
-- To remove all of it: DROP SCHEMA lakehead CASCADE
--
-- What it writes is one logical message a statement, of a few hundred bytes and the statement's text; it reads the
-- catalog only. No statement fails because of it: what goes wrong is a warning. Temporary objects are left out, and the
-- texts that may hold a secret.

BEGIN;
SET LOCAL client_min_messages = warning;

-- What runs with every statement belongs to nobody else.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_namespace n LEFT JOIN pg_catalog.pg_proc p ON p.pronamespace = n.oid
        WHERE n.nspname = 'lakehead' AND EXISTS (SELECT FROM pg_catalog.pg_roles r
            WHERE r.oid IN (n.nspowner, p.proowner) AND r.rolname <> current_user))
    THEN
        RAISE EXCEPTION 'schema lakehead, or a function in it, belongs to another role: look at it, and drop it';
    END IF;
END
$$;

CREATE SCHEMA IF NOT EXISTS lakehead;
COMMENT ON SCHEMA lakehead IS 'Lakehead: statements of DDL in the change stream. DROP SCHEMA lakehead CASCADE removes it.';
REVOKE ALL ON SCHEMA lakehead FROM PUBLIC;
GRANT USAGE ON SCHEMA lakehead TO PUBLIC;

-- The table that an object is of, or is; null if it is of none.
CREATE OR REPLACE FUNCTION lakehead.table_of(class oid, object oid) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.oid FROM pg_class c WHERE c.relkind IN ('r', 'p', 'f') AND c.oid = CASE class
        WHEN 'pg_class'::regclass THEN coalesce((SELECT indrelid FROM pg_index WHERE indexrelid = object), object)
        WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid FROM pg_attrdef WHERE oid = object)
        WHEN 'pg_constraint'::regclass THEN (SELECT conrelid FROM pg_constraint WHERE oid = object)
        WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid = object)
        WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid = object)
        WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid = object)
        WHEN 'pg_statistic_ext'::regclass THEN (SELECT stxrelid FROM pg_statistic_ext WHERE oid = object)
    END
$$;

-- The columns of a table as they are now: by them the reader knows whether the catalog has gone on since.
CREATE OR REPLACE FUNCTION lakehead.columns_of(relation oid) RETURNS json
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT pg_catalog.json_agg(pg_catalog.json_build_object('name', a.attname, 'type', a.atttypid::pg_catalog.int8,
        'modifier', a.atttypmod,
        'not_null', a.attnotnull AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint n WHERE n.conrelid = a.attrelid
            AND n.contype = 'n' AND NOT n.convalidated AND n.conkey[1] = a.attnum),
        'default', pg_catalog.pg_get_expr(d.adbin, d.adrelid))
        ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
$$;

CREATE OR REPLACE FUNCTION lakehead.objects(event text) RETURNS SETOF json
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF event = 'sql_drop' THEN
        RETURN QUERY SELECT json_build_object('type', o.object_type, 'schema', o.schema_name,
            'identity', o.object_identity, 'id', o.objid::int8,
            'table_schema', CASE WHEN o.of_table THEN o.address_names[1] END,
            'table_name', CASE WHEN o.of_table THEN o.address_names[2] END)
        FROM (SELECT *, object_type IN ('table', 'foreign table', 'index', 'sequence', 'view', 'materialized view',
                'table column', 'table constraint', 'default value', 'trigger', 'policy', 'rule') AS of_table
            FROM pg_event_trigger_dropped_objects()) o
        WHERE (o.original OR o.normal) AND NOT o.is_temporary LIMIT 1001;
    ELSE
        RETURN QUERY SELECT json_build_object('type', o.object_type, 'schema', o.schema_name,
            'identity', o.object_identity, 'id', o.objid::int8, 'tag', o.command_tag,
            'table', c.oid::int8,
            'table_schema', coalesce(cn.nspname, rn.nspname), 'table_name', coalesce(c.relname, r.relname),
            'replica_identity', c.relreplident, 'key', (SELECT json_agg(a.attname ORDER BY k.place)
                FROM pg_index i, unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (number, place), pg_attribute a
                WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k.number),
            'columns', CASE WHEN c.relkind = 'r' THEN lakehead.columns_of(c.oid) END)
        FROM pg_event_trigger_ddl_commands() o
        LEFT JOIN pg_class c ON c.oid = lakehead.table_of(o.classid, o.objid)
        LEFT JOIN pg_namespace cn ON cn.oid = c.relnamespace
        LEFT JOIN pg_class r ON o.classid = 'pg_class'::regclass AND r.oid = o.objid
        LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
        WHERE NOT o.in_extension AND coalesce(o.schema_name, '') !~ '^pg_(temp|toast)' AND coalesce(c.relpersistence, r.relpersistence, 'p') <> 't'
        LIMIT 1001;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION lakehead.record(event text, tag text, path text, text_of text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found json[];
    is_secret boolean := tag ~ 'USER MAPPING|SERVER|SUBSCRIPTION|FOREIGN DATA WRAPPER'
        OR text_of ~* 'passw|secret|token|credential|private|api_?key|access_?key|encrypt|[a-z]://[^/[:space:]]*:[^/[:space:]]*@'
        OR text_of ~* 'user[[:space:]]+mapping|subscription|(create|alter)[[:space:]]+server|foreign[[:space:]]+data';
BEGIN
    IF current_setting('wal_level') <> 'logical' THEN
        RETURN;
    END IF;
    found := ARRAY(SELECT lakehead.objects(event));
    IF cardinality(found) = 0 THEN
        RETURN;
    END IF;
    PERFORM pg_logical_emit_message(true, 'lakehead.ddl', json_build_object(
        'event', event, 'command', tag, 'role', current_user, 'session_role', session_user, 'search_path', path,
        'statement', CASE WHEN NOT is_secret THEN left(text_of, 16384) END,
        'cut', is_secret OR length(text_of) > 16384, 'objects', array_to_json(found[1:1000]),
        'more', cardinality(found) > 1000)::text);
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'lakehead does not record this %: %', tag, SQLERRM;
END
$$;

-- It has the caller's search_path, so it names all that it uses by schema.
CREATE OR REPLACE FUNCTION lakehead.statement() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lakehead.record(tg_event, tg_tag, pg_catalog.current_setting('search_path'), pg_catalog.current_query());
END
$$;

DROP EVENT TRIGGER IF EXISTS lakehead_statement;
DROP EVENT TRIGGER IF EXISTS lakehead_drop;
CREATE EVENT TRIGGER lakehead_statement ON ddl_command_end EXECUTE FUNCTION lakehead.statement();
CREATE EVENT TRIGGER lakehead_drop ON sql_drop EXECUTE FUNCTION lakehead.statement();

COMMIT;
