{{/*
The gateway's configuration: what `config` says, and what follows from the other values. Nobody else writes settings.
*/}}

{{/* What follows from the values, for everybody who decides by it. */}}
{{- define "license-gateway.facts" -}}
{{- $config := .Values.config -}}
{{- $maximum := ternary .Values.autoscaling.maxReplicas .Values.replicaCount .Values.autoscaling.enabled | int -}}
{{- $minimum := ternary .Values.autoscaling.minReplicas .Values.replicaCount .Values.autoscaling.enabled | int -}}
{{- $kind := $config.token_store.kind -}}
{{- $auditInFiles := ne $config.audit.path "stdout" -}}
{{- $alone := or (eq $kind "file") $auditInFiles -}}
{{- $volume := .Values.persistence.type -}}
{{- if eq $volume "auto" -}}
{{- $volume = ternary "claim" "ephemeral" (and $alone (not .Values.sandbox.enabled)) -}}
{{- end -}}
{{- $subjects := list -}}
{{- range $config.callers -}}
{{- $subjects = append $subjects (ternary "token" (ternary "anonymous" "certificate" (eq (default "" .identity) "anonymous")) (hasKey . "token_subject")) -}}
{{- end -}}
{{- $clientCa := .Values.secrets.clientCa -}}
{{- dict
    "minimum" $minimum
    "maximum" $maximum
    "kind" $kind
    "auditInFiles" $auditInFiles
    "alone" $alone
    "volume" $volume
    "tls" (not (empty .Values.secrets.tls.existingSecret))
    "clientCa" (not (empty (coalesce $clientCa.existingSecret $clientCa.existingConfigMap)))
    "jwt" (not (empty $config.jwt.issuer))
    "subjects" $subjects
    "openCallers" (and .Values.sandbox.enabled (empty $config.callers))
    | toJson -}}
{{- end }}

{{/* Every setting with its value, section by section. */}}
{{- define "license-gateway.settings" -}}
{{- $facts := include "license-gateway.facts" . | fromJson -}}
{{- $secrets := .Values.secrets -}}
{{- $files := "/run/secrets/license-gateway" -}}
{{- $settings := deepCopy .Values.config -}}
{{- $store := $settings.token_store -}}
{{- $_ := set $settings.server "listen" "0.0.0.0:50051" -}}
{{- $_ := set $settings "admin" (dict "listen" "0.0.0.0:9464") -}}
{{- $_ := set $settings "tls" dict -}}
{{- if $facts.tls -}}
{{- $_ := set $settings.tls "certificate_file" (printf "%s/tls/tls.crt" $files) -}}
{{- $_ := set $settings.tls "key_file" (printf "%s/tls/tls.key" $files) -}}
{{- if $facts.clientCa -}}
{{- $_ := set $settings.tls "client_ca_file" (printf "%s/client-ca/ca.crt" $files) -}}
{{- end -}}
{{- end -}}
{{- if or $secrets.centralCa.existingSecret $secrets.centralCa.existingConfigMap -}}
{{- $_ := set $settings.central "ca_file" (printf "%s/central-ca/ca.crt" $files) -}}
{{- end -}}
{{- $_ := set $settings.quota "replicas" (max 1 (int $facts.maximum)) -}}
{{- $_ := set $store "path" "/var/lib/license-gateway/state" -}}
{{- if eq $facts.kind "kubernetes" -}}
{{- $_ := set $store "name" (include "license-gateway.tokenSecret" .) -}}
{{- end -}}
{{- if and (eq $facts.kind "redis") $secrets.redis.existingSecret -}}
{{- with $secrets.redis.passwordKey }}{{ $_ := set $store "password_file" (printf "%s/redis/password" $files) }}{{ end -}}
{{- with $secrets.redis.caKey }}{{ $_ := set $store "ca_file" (printf "%s/redis/ca.crt" $files) }}{{ end -}}
{{- with $secrets.redis.certificateKey }}{{ $_ := set $store "client_certificate_file" (printf "%s/redis/client.crt" $files) }}{{ end -}}
{{- with $secrets.redis.privateKeyKey }}{{ $_ := set $store "client_key_file" (printf "%s/redis/client.key" $files) }}{{ end -}}
{{- end -}}
{{- if .Values.sandbox.enabled -}}
{{- $_ := set $settings.central "base_url" (printf "http://%s-sandbox:%d" (include "license-gateway.fullname" .) (int .Values.sandbox.port)) -}}
{{- $_ := set $settings.central "allow_plaintext" true -}}
{{- $_ := set $settings.credentials "client_id" "SandboxClientIdNumberOne00000001" -}}
{{- $_ := set $settings.credentials "username" "msp-admin@example.com" -}}
{{- $_ := set $settings.credentials "customer_id" "5f2c0a9e6d3b4e1f8a7c9b0d1e2f3a4b" -}}
{{- if $facts.openCallers -}}
{{- $_ := set $settings.server "allow_anonymous_callers" true -}}
{{- $anyone := dict "identity" "anonymous" "rpcs" (list "UnassignLicenses" "PreviewUnassignLicenses" "ListServices" "GetOperation" "ListOperations" "WatchRelease" "ListCustomers") "scopes" (list "include") "services" "*" "customers" "*" -}}
{{- $_ := set $settings "callers" (list $anyone) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $settings.credentials "client_secret_file" (printf "%s/credentials/client_secret" $files) -}}
{{- $_ := set $settings.credentials "refresh_token_file" (printf "%s/seed/refresh_token" $files) -}}
{{- if $settings.credentials.username -}}
{{- $_ := set $settings.credentials "password_file" (printf "%s/credentials/password" $files) -}}
{{- end -}}
{{- if $facts.jwt -}}
{{- if $secrets.jwt.fromServiceAccount -}}
{{- $_ := set $settings.jwt "ca_file" (printf "%s/jwt/ca.crt" $files) -}}
{{- $_ := set $settings.jwt "token_file" (printf "%s/jwt/token" $files) -}}
{{- else -}}
{{- with $secrets.jwt.jwksKey }}{{ $_ := set $settings.jwt "jwks_file" (printf "%s/jwt/jwks.json" $files) }}{{ end -}}
{{- with $secrets.jwt.caKey }}{{ $_ := set $settings.jwt "ca_file" (printf "%s/jwt/ca.crt" $files) }}{{ end -}}
{{- with $secrets.jwt.tokenKey }}{{ $_ := set $settings.jwt "token_file" (printf "%s/jwt/token" $files) }}{{ end -}}
{{- end -}}
{{- else -}}
{{- $_ := set $settings "jwt" dict -}}
{{- end -}}
{{- toJson $settings -}}
{{- end }}

{{/*
Settings as TOML: an empty string is not set. Numbers come as floats in Helm, and `toToml` would print them so; JSON has
whole numbers, strings, booleans and lists spelled as TOML has them.
*/}}
{{- define "license-gateway.toml" -}}
{{- range $key, $value := . -}}
{{- if not (or (kindIs "map" $value) (eq $key "callers")) -}}
{{ $key }} = {{ toJson $value }}
{{ end -}}
{{- end -}}
{{- range $section, $values := . -}}
{{- if kindIs "map" $values -}}
{{- $lines := list -}}
{{- range $key, $value := $values -}}
{{- if ne (toString $value) "" -}}
{{- $lines = append $lines (printf "%s = %s" $key (toJson $value)) -}}
{{- end -}}
{{- end -}}
{{- if $lines }}
[{{ $section }}]
{{ join "\n" $lines }}
{{ end -}}
{{- end -}}
{{- end -}}
{{- range .callers }}
[[callers]]
{{- range $key, $value := . }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{ end -}}
{{- end }}

{{/* The Secret that the gateway makes and no release owns. */}}
{{- define "license-gateway.tokenSecret" -}}
{{- default (printf "%s-token" (include "license-gateway.fullname" .)) .Values.config.token_store.name -}}
{{- end }}
