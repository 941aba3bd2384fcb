CREATE TABLE public.ageing (
    id smallint NOT NULL,
    age double precision NOT NULL
);
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.departed (
    id bigint NOT NULL,
    digest bytea NOT NULL,
    n_tokens bigint NOT NULL,
    reason text NOT NULL,
    departed_at double precision NOT NULL
);
CREATE SEQUENCE public.departed_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.departed_id_seq OWNED BY public.departed.id;
CREATE TABLE public.entries (
    digest bytea NOT NULL,
    n_tokens bigint NOT NULL,
    namespace text NOT NULL,
    fingerprint bytea NOT NULL,
    token_digest bytea NOT NULL,
    schema_id text NOT NULL,
    role character varying(16) NOT NULL,
    blob character varying(128) NOT NULL,
    blob_bytes bigint NOT NULL,
    state_bytes bigint NOT NULL,
    has_output boolean NOT NULL,
    cost_s double precision NOT NULL,
    created_at double precision NOT NULL,
    used_at double precision NOT NULL,
    hits bigint NOT NULL,
    score double precision NOT NULL,
    pinned boolean NOT NULL,
    expires_at double precision,
    status character varying(16) NOT NULL,
    reason text NOT NULL,
    model text NOT NULL,
    labels text NOT NULL,
    ancestor_tokens bigint DEFAULT 0 NOT NULL,
    memo text DEFAULT ''::text NOT NULL,
    anchor bigint
);
CREATE TABLE public.leases (
    digest bytea NOT NULL,
    owner text NOT NULL,
    outcome character varying(16) NOT NULL,
    expires_at double precision NOT NULL
);
CREATE TABLE public.lookups (
    tier character varying(64) NOT NULL,
    namespace text NOT NULL,
    fingerprint bytea NOT NULL,
    lookups bigint NOT NULL,
    found bigint NOT NULL,
    tokens_asked bigint NOT NULL,
    tokens_found bigint NOT NULL,
    seconds_found double precision NOT NULL,
    since double precision NOT NULL
);
CREATE TABLE public.namespace_totals (
    namespace text NOT NULL,
    shard smallint NOT NULL,
    entries bigint NOT NULL,
    blob_bytes bigint NOT NULL,
    state_bytes bigint NOT NULL,
    quarantined bigint NOT NULL,
    pinned bigint NOT NULL,
    pinned_bytes bigint DEFAULT 0 NOT NULL
);
CREATE TABLE public.sightings (
    id bigint NOT NULL,
    prefix bytea NOT NULL
);
CREATE SEQUENCE public.sightings_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.sightings_id_seq OWNED BY public.sightings.id;
ALTER TABLE ONLY public.departed ALTER COLUMN id SET DEFAULT nextval('public.departed_id_seq'::regclass);
ALTER TABLE ONLY public.sightings ALTER COLUMN id SET DEFAULT nextval('public.sightings_id_seq'::regclass);
INSERT INTO public.ageing VALUES (0, 5.5);
INSERT INTO public.alembic_version VALUES ('0009');
INSERT INTO public.departed VALUES (1, '\xa1788ce1d89fe8b456e26d4c37fd635633c259adc1ff7fffae353a5c73807b19', 5, 'evicted', 1700000000);
INSERT INTO public.entries VALUES ('\x49ac5de219edae62f9fdeea0fc3f3af48fd832f22fac50820ac11174d6e068bd', 1, 'default', '\x9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4', '\x87bfd5b84283348e41e644f6b23b9df022195c12f2b87984d4dd795c496baed6', 'rwkv7', 'segment', '49ac5de219edae62f9fdeea0fc3f3af48fd832f22fac50820ac11174d6e068bd-1.0000000000000000', 1000, 2000, false, 1.5, 1700000000, 1700000000, 0, 0, false, NULL, 'ready', '', '', '{}', 0, '', NULL);
INSERT INTO public.entries VALUES ('\x227ba5f2c6c9109fe5c44a0696f393379607493a377f522ee27d9a7ae3227d89', 2, 'tenant ü', '\x9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4', '\x626621566d0e2c7ab4a6fa1b61c2f9840f188214bfc57768ec8f93c22d46cf5f', 'rwkv7', 'prompt', '227ba5f2c6c9109fe5c44a0696f393379607493a377f522ee27d9a7ae3227d89-2.0000000000000001', 1000, 2000, true, 1.5, 1700000000, 1700000001, 0, 12.5, true, NULL, 'ready', '', '模型', '{"": "\u00fc", "project": "x"}', 256, '1 c 3 2 512 1024', NULL);
INSERT INTO public.entries VALUES ('\x08f225fe08e94a5b1da2da4079fcd1a7647d375cc95624a6c6d65a6fc84b3243', 3, 'default', '\x9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4', '\x8badf3aaf33dc08ab1e5d45fd4cf2be0227e56ff2398a90a0078491575e6f11d', 'rwkv7', 'sparse', '08f225fe08e94a5b1da2da4079fcd1a7647d375cc95624a6c6d65a6fc84b3243-3.0000000000000002', 1000, 2000, false, 1.5, 1700000000, 1700000002, 0, 0, false, 1700000060, 'ready', '', '', '{}', 0, '', NULL);
INSERT INTO public.entries VALUES ('\x3d3ee11c2fbf7f6a6b1e6aa16c382631ec5f1fbfc50ca3ba5a89d366d22eeaef', 4, 'default', '\x9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4', '\xdb61cd751c3da92bd2f6c0d57701bf039d2235d759a592814aa69c59dd2738ce', 'rwkv7', 'named', '3d3ee11c2fbf7f6a6b1e6aa16c382631ec5f1fbfc50ca3ba5a89d366d22eeaef-4.0000000000000003', 1000, 2000, false, 1.5, 1700000000, 1700000003, 0, 0, false, NULL, 'quarantined', 'CorruptError: a bit flipped', '', '{}', 0, '', 0);
INSERT INTO public.leases VALUES ('\x4fec9c05b7f6db9c1b5fdd75bc5107f257d3e28f9cb1313c7797f498438b426f', 'a host that is long gone', '', 1795324607.804459);
INSERT INTO public.lookups VALUES ('', 'tenant ü', '\x9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4', 7, 5, 700, 450, 2.5, 1700000000);
INSERT INTO public.namespace_totals VALUES ('default', 1, 0, 0, 0, 0, 0, 0);
INSERT INTO public.namespace_totals VALUES ('default', 9, 1, 1000, 2000, 0, 0, 0);
INSERT INTO public.namespace_totals VALUES ('tenant ü', 2, 1, 1000, 2000, 0, 1, 1000);
INSERT INTO public.namespace_totals VALUES ('default', 8, 1, 1000, 2000, 0, 0, 0);
INSERT INTO public.namespace_totals VALUES ('default', 13, 1, 1000, 2000, 1, 0, 0);
INSERT INTO public.sightings VALUES (1, '\x836ccf1a49f16dec65ef4b2c');
INSERT INTO public.sightings VALUES (2, '\x836ccf1a836ccf1aa147f65f');
INSERT INTO public.sightings VALUES (3, '\x836ccf1aca74443b57f3986b');
SELECT pg_catalog.setval('public.departed_id_seq', 1, true);
SELECT pg_catalog.setval('public.sightings_id_seq', 3, true);
ALTER TABLE ONLY public.ageing
    ADD CONSTRAINT ageing_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.departed
    ADD CONSTRAINT departed_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.entries
    ADD CONSTRAINT entries_pkey PRIMARY KEY (digest);
ALTER TABLE ONLY public.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (digest);
ALTER TABLE ONLY public.lookups
    ADD CONSTRAINT lookups_pkey PRIMARY KEY (tier, namespace, fingerprint);
ALTER TABLE ONLY public.namespace_totals
    ADD CONSTRAINT namespace_totals_pkey PRIMARY KEY (namespace, shard);
ALTER TABLE ONLY public.sightings
    ADD CONSTRAINT sightings_pkey PRIMARY KEY (id);
CREATE UNIQUE INDEX ix_departed_digest ON public.departed USING btree (digest);
CREATE INDEX ix_entries_anchor ON public.entries USING btree (anchor);
CREATE INDEX ix_entries_eviction ON public.entries USING btree (pinned, status, score);
CREATE INDEX ix_entries_expires_at ON public.entries USING btree (expires_at);
CREATE INDEX ix_entries_lookup ON public.entries USING hash (digest);
CREATE INDEX ix_entries_model ON public.entries USING btree (namespace, fingerprint);
CREATE INDEX ix_entries_namespace_digest ON public.entries USING btree (namespace, digest);
CREATE INDEX ix_entries_namespace_eviction ON public.entries USING btree (namespace, pinned, status, score);
CREATE INDEX ix_entries_namespace_expires_at ON public.entries USING btree (namespace, expires_at) WHERE (expires_at IS NOT NULL);
CREATE INDEX ix_entries_token_digest ON public.entries USING btree (token_digest, namespace);
CREATE INDEX ix_entries_used_at ON public.entries USING btree (used_at, digest);
CREATE INDEX ix_leases_expires_at ON public.leases USING btree (expires_at);
CREATE UNIQUE INDEX ix_sightings_prefix ON public.sightings USING btree (prefix);
