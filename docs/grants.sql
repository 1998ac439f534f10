-- The rights of Lamplighter's database user, and no others: its own schema, and what you name below.
-- Run it as an administrator of the database before the first deployment; running it again changes nothing more:
--
--     psql -v user=lamplighter -f docs/grants.sql "postgresql://admin@host/database"
--
-- The user then runs the migrations itself, in each deployment. To run them as the administrator instead, add
-- `-v migrations=mine` (docs/adopting-a-database.md): the user then cannot change the schema.

\set ON_ERROR_STOP on
\if :{?migrations}
\else
    \set migrations theirs
\endif
SELECT :'migrations' = 'mine' AS by_administrator \gset

BEGIN;
SET LOCAL client_min_messages = warning;
CREATE SCHEMA IF NOT EXISTS lamplighter;
GRANT USAGE ON SCHEMA lamplighter TO :"user";
\if :by_administrator
    REVOKE CREATE ON SCHEMA lamplighter FROM :"user";
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA lamplighter TO :"user";
    ALTER DEFAULT PRIVILEGES IN SCHEMA lamplighter GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"user";
\else
    GRANT CREATE ON SCHEMA lamplighter TO :"user";
\endif

-- What is yours: take the lines that you need out of the comment, with your names. Everything else stays closed.
--
-- The orphan cleanup reads the columns that name files:
-- GRANT SELECT (storage_key) ON public.media_files TO :"user";
-- A rule previews and deletes. It locks rows that somebody else may hold, which takes UPDATE of any one column:
-- GRANT SELECT, DELETE, UPDATE (id) ON public.handled_downloads, public.onboarding_requests TO :"user";
-- GRANT SELECT, DELETE, UPDATE (id) ON public.sessions, public.tokens TO :"user";
-- A rule of your own takes the same; the table of its archive takes INSERT, and the parent of its orphans SELECT.
-- `plans` puts plans back to DRAFT:
-- GRANT SELECT, UPDATE (status, updated_at) ON public.analysis_plans TO :"user";
-- `deleted_accounts` reads which accounts are deleted:
-- GRANT SELECT ON public.cloud_accounts TO :"user";
-- `audit_log` archives rows, then deletes them:
-- GRANT SELECT, DELETE ON public.audit_log TO :"user";
--
-- To preview only, SELECT is enough. A table with row-level security needs: ALTER ROLE ... BYPASSRLS.
COMMIT;
