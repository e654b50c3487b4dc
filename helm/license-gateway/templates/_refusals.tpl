{{/*
What the schema cannot say: values that are each in order and together are not. All of them at once, in words. Rendered
with the ConfigMap.
*/}}

{{- define "license-gateway.refuse" -}}
{{- $facts := include "license-gateway.facts" . | fromJson -}}
{{- $config := .Values.config -}}
{{- $secrets := .Values.secrets -}}
{{- $sandbox := .Values.sandbox.enabled -}}
{{- $maximum := int $facts.maximum -}}
{{- $problems := list -}}

{{- /* Replicas, stores and volumes. */}}
{{- $several := printf "%d gateways (%s)" $maximum (ternary "autoscaling.maxReplicas" "replicaCount" .Values.autoscaling.enabled) -}}
{{- if and (gt $maximum 1) (eq $facts.kind "file") -}}
{{- $problems = append $problems (printf "%s cannot share the file store: each would spend the other's refresh token. Set config.token_store.kind to redis or kubernetes, or run one gateway" $several) -}}
{{- end -}}
{{- if and (gt $maximum 1) (ne $facts.kind "file") $facts.auditInFiles -}}
{{- $problems = append $problems (printf "%s cannot write one audit trail in files: the second one is refused and exits. Set config.audit.path to stdout, where a collector keeps the log, or run one gateway" $several) -}}
{{- end -}}
{{- if and (eq .Values.persistence.type "ephemeral") $facts.alone (not $sandbox) -}}
{{- $problems = append $problems "persistence.type is ephemeral, and what must outlive the pod would go with it: the refresh token of the file store or the audit trail. Set persistence.type to auto or claim" -}}
{{- end -}}
{{- if and (eq .Values.persistence.type "claim") (gt $maximum 1) -}}
{{- $problems = append $problems (printf "persistence.type is claim, and %s would share one volume; set it to auto" $several) -}}
{{- end -}}
{{- if and .Values.persistence.existingClaim (ne $facts.volume "claim") -}}
{{- $problems = append $problems "persistence.existingClaim is set, and nothing would use it; set persistence.type to claim, or remove it" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- $problems = append $problems "autoscaling.minReplicas is larger than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- $problems = append $problems "autoscaling needs resources.requests.cpu: the target is a share of it" -}}
{{- end -}}
{{- if eq $facts.kind "redis" -}}
{{- if not $config.token_store.url -}}
{{- $problems = append $problems "config.token_store.kind is redis and config.token_store.url is empty; set it to the primary, such as rediss://redis:6379" -}}
{{- end -}}
{{- if regexMatch "^[a-z]+://[^/]*@" $config.token_store.url -}}
{{- $problems = append $problems "config.token_store.url holds a user or a password, and would stand in a ConfigMap; use config.token_store.username and secrets.redis" -}}
{{- end -}}
{{- if and $config.token_store.username (not (and $secrets.redis.existingSecret $secrets.redis.passwordKey)) -}}
{{- $problems = append $problems "config.token_store.username needs a password: secrets.redis.existingSecret and passwordKey" -}}
{{- end -}}
{{- else if or $config.token_store.url $config.token_store.username $config.token_store.key $secrets.redis.existingSecret -}}
{{- $problems = append $problems (printf "config.token_store.url, username and key and secrets.redis are of use only with kind redis, and the kind is %s" $facts.kind) -}}
{{- end -}}
{{- if eq $facts.kind "kubernetes" -}}
{{- $token := include "license-gateway.tokenSecret" . -}}
{{- if has $token (list $secrets.credentials.existingSecret $secrets.seed.existingSecret $secrets.tls.existingSecret) -}}
{{- $problems = append $problems (printf "the Secret %s is named for the gateway to keep its tokens in and for secrets of yours; the gateway needs one of its own (config.token_store.name)" $token) -}}
{{- end -}}
{{- if and .Values.rbac.create (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- $problems = append $problems "the right to the token Secret would go to the namespace's default service account, and so to every pod; set serviceAccount.create or serviceAccount.name" -}}
{{- end -}}
{{- else if or $config.token_store.namespace $config.token_store.name -}}
{{- $problems = append $problems (printf "config.token_store.namespace and name are of use only with kind kubernetes, and the kind is %s" $facts.kind) -}}
{{- end -}}

{{- /* Central, and who we are to it. */}}
{{- if $sandbox -}}
{{- if or $config.central.base_url $config.central.cluster -}}
{{- $problems = append $problems "sandbox.enabled puts a stand-in in Central's place, and config.central names the real one; remove one of them" -}}
{{- end -}}
{{- if or $config.credentials.client_id $config.credentials.username $secrets.credentials.existingSecret $secrets.seed.existingSecret -}}
{{- $problems = append $problems "sandbox.enabled, and credentials of a real account: the sandbox has its own, and shows to everybody what it is sent; remove config.credentials and secrets.credentials, or the sandbox" -}}
{{- end -}}
{{- else -}}
{{- if not $secrets.credentials.existingSecret -}}
{{- $problems = append $problems "no credentials: set secrets.credentials.existingSecret to the Secret that holds the application's client secret (or sandbox.enabled, to try it without an account)" -}}
{{- end -}}
{{- if not $config.credentials.client_id -}}
{{- $problems = append $problems "no credentials: set config.credentials.client_id to the application's id at Central's API gateway" -}}
{{- end -}}
{{- if not (or $config.central.base_url $config.central.cluster) -}}
{{- $problems = append $problems "which Central? Set config.central.cluster to a name such as us-2, or config.central.base_url" -}}
{{- end -}}
{{- if and $config.central.base_url $config.central.cluster -}}
{{- $problems = append $problems "config.central.base_url and config.central.cluster are both set; remove one of them" -}}
{{- end -}}
{{- if and (hasPrefix "http://" $config.central.base_url) (not $config.central.allow_plaintext) -}}
{{- $problems = append $problems "config.central.base_url is plain http, which would show the account's tokens to the network; use https://" -}}
{{- end -}}
{{- if ne (empty $config.credentials.username) (empty $config.credentials.customer_id) -}}
{{- $problems = append $problems "a login needs config.credentials.username and customer_id, and the password in secrets.credentials; set both or none" -}}
{{- end -}}
{{- end -}}

{{- /* What the gateway itself would refuse, and exit. */}}
{{- range $bound := list
    (list "config.server.drain_timeout" $config.server.drain_timeout "0s" "10m")
    (list "config.server.receive_timeout" $config.server.receive_timeout "100ms" "5m")
    (list "config.server.idle_timeout" $config.server.idle_timeout "100ms" "24h")
    (list "config.server.max_connection_age" $config.server.max_connection_age "0s" "24h")
    (list "config.server.max_deadline" $config.server.max_deadline "1s" "1h")
    (list "config.central.timeout" $config.central.timeout "1s" "5m")
    (list "config.central.max_wait" $config.central.max_wait "100ms" "10m")
    (list "config.jwt.refresh_interval" (default "5m" $config.jwt.refresh_interval) "30s" "1h") -}}
{{- $length := include "license-gateway.milliseconds" (index $bound 1) | int64 -}}
{{- if or (lt $length (include "license-gateway.milliseconds" (index $bound 2) | int64)) (gt $length (include "license-gateway.milliseconds" (index $bound 3) | int64)) -}}
{{- $problems = append $problems (printf "%s is %s, which is out of bounds; %s to %s is allowed" (index $bound 0) (index $bound 1) (index $bound 2) (index $bound 3)) -}}
{{- end -}}
{{- end -}}

{{- /* Callers. */}}
{{- $seen := list -}}
{{- $identified := or (and $facts.clientCa (has "certificate" $facts.subjects)) (and $facts.jwt (has "token" $facts.subjects)) -}}
{{- if and $config.central.allow_open_scopes (not $identified) -}}
{{- $problems = append $problems "config.central.allow_open_scopes lets callers say \"everyone\", and nobody is identified: it needs secrets.clientCa or config.jwt, and an entry in config.callers for somebody who is known" -}}
{{- end -}}
{{- range $config.callers -}}
{{- if and (eq (default "" .identity) "anonymous") (or (has "exclude" (default list .scopes)) (has "all" (default list .scopes))) -}}
{{- $problems = append $problems "config.callers gives the scopes exclude or all to anonymous: whoever reaches the port could take every customer's licences; give them to callers who are identified" -}}
{{- end -}}
{{- if and (has "UnassignLicenses" .rpcs) (or (has "exclude" (default list .scopes)) (has "all" (default list .scopes))) (ne (toJson .customers) "\"*\"") -}}
{{- $problems = append $problems "config.callers: the scopes exclude and all reach customers that nobody lists; they need customers: \"*\"" -}}
{{- end -}}
{{- $who := printf "%v/%v" (get . "identity") (get . "token_subject") -}}
{{- if has $who $seen -}}
{{- $problems = append $problems (printf "config.callers has two entries for %s; make one entry of both" (coalesce (get . "identity") (get . "token_subject"))) -}}
{{- end -}}
{{- $seen = append $seen $who -}}
{{- if and (hasKey . "token_subject") (hasKey . "identity") -}}
{{- $problems = append $problems (printf "an entry of config.callers has identity (%s) and token_subject (%s); a certificate and a token are different callers: make two entries" .identity .token_subject) -}}
{{- end -}}
{{- if not (or (hasKey . "token_subject") (hasKey . "identity")) -}}
{{- $problems = append $problems "an entry of config.callers says what somebody may do and not who: it needs identity or token_subject" -}}
{{- end -}}
{{- end -}}
{{- if and (has "certificate" $facts.subjects) (not $facts.clientCa) -}}
{{- $problems = append $problems "config.callers names an identity of a certificate, and no certificate would be asked for; set secrets.clientCa" -}}
{{- end -}}
{{- if and (has "token" $facts.subjects) (not $facts.jwt) -}}
{{- $problems = append $problems "config.callers names a token_subject, and no token would be read; set config.jwt.issuer" -}}
{{- end -}}
{{- if and (has "anonymous" $facts.subjects) (not $config.server.allow_anonymous_callers) -}}
{{- $problems = append $problems "config.callers has an entry for anonymous, and a pod's port lets nobody in without an identity; set config.server.allow_anonymous_callers, or remove the entry" -}}
{{- end -}}
{{- if and (or $config.server.allow_anonymous_callers $facts.openCallers) (ne .Values.service.type "ClusterIP") -}}
{{- $problems = append $problems (printf "callers without an identity are let in, and service.type %s lets in whoever is outside the cluster; use ClusterIP, or identify them" .Values.service.type) -}}
{{- end -}}
{{- if and $facts.clientCa (not $facts.tls) -}}
{{- $problems = append $problems "secrets.clientCa asks callers for certificates, which needs TLS; set secrets.tls.existingSecret" -}}
{{- end -}}
{{- range $name := list "clientCa" "centralCa" -}}
{{- $from := get $secrets $name -}}
{{- if and $from.existingSecret $from.existingConfigMap -}}
{{- $problems = append $problems (printf "secrets.%s names a Secret and a ConfigMap; remove one of them" $name) -}}
{{- end -}}
{{- end -}}
{{- if $facts.jwt -}}
{{- if not $config.jwt.audience -}}
{{- $problems = append $problems "config.jwt.issuer without config.jwt.audience: tokens for any other service would be taken" -}}
{{- end -}}
{{- if eq (empty $config.jwt.jwks_url) (empty $secrets.jwt.jwksKey) -}}
{{- $problems = append $problems "config.jwt needs the issuer's keys from one place: config.jwt.jwks_url, or secrets.jwt.existingSecret with jwksKey" -}}
{{- end -}}
{{- if and (or $secrets.jwt.jwksKey $secrets.jwt.caKey $secrets.jwt.tokenKey) (not $secrets.jwt.existingSecret) -}}
{{- $problems = append $problems "secrets.jwt names keys and no Secret; set secrets.jwt.existingSecret" -}}
{{- end -}}
{{- if and (empty $config.jwt.jwks_url) (or $config.jwt.refresh_interval $secrets.jwt.caKey $secrets.jwt.tokenKey $secrets.jwt.fromServiceAccount) -}}
{{- $problems = append $problems "config.jwt.refresh_interval, and secrets.jwt but for jwksKey, are about config.jwt.jwks_url, which is empty" -}}
{{- end -}}
{{- else if or $config.jwt.audience $config.jwt.jwks_url $config.jwt.algorithms $config.jwt.refresh_interval $secrets.jwt.existingSecret $secrets.jwt.fromServiceAccount -}}
{{- $problems = append $problems "config.jwt or secrets.jwt is set, and without config.jwt.issuer no token is read" -}}
{{- end -}}
{{- if .Values.grpcRoute.enabled -}}
{{- if not .Values.grpcRoute.parentRefs -}}
{{- $problems = append $problems "grpcRoute.enabled without grpcRoute.parentRefs: name the Gateway that it belongs to" -}}
{{- end -}}
{{- if and (has "certificate" $facts.subjects) (not (has "token" $facts.subjects)) -}}
{{- $problems = append $problems "grpcRoute: whoever routes by method ends the callers' TLS, so that their certificates never reach the gateway, and config.callers knows nobody otherwise; identify callers by tokens, or do without the route" -}}
{{- end -}}
{{- end -}}

{{- /* The pod. */}}
{{- $drain := include "license-gateway.milliseconds" $config.server.drain_timeout | int64 -}}
{{- $needed := add (int64 .Values.termination.preStopSeconds) (div (add $drain 999) 1000) 35 5 -}}
{{- if lt (int64 .Values.termination.gracePeriodSeconds) $needed -}}
{{- $problems = append $problems (printf "termination.gracePeriodSeconds is %d, and the pod would be killed while it drains: it needs %d (preStopSeconds %d, config.server.drain_timeout %s, 35 for an exchange of tokens, and 5 to send the last telemetry)" (int64 .Values.termination.gracePeriodSeconds) $needed (int64 .Values.termination.preStopSeconds) $config.server.drain_timeout) -}}
{{- end -}}
{{- range $name, $image := dict "image" .Values.image "sandbox.image" .Values.sandbox.image -}}
{{- $tag := $image.tag -}}
{{- if eq $name "image" -}}
{{- if not (or $tag $image.digest) -}}
{{- $problems = append $problems "which image? image.tag and image.digest are both empty" -}}
{{- end -}}
{{- end -}}
{{- if and (eq $tag "latest") (not $image.digest) -}}
{{- $problems = append $problems (printf "%s.tag is latest, which moves: a rollback would not bring the old version back; name the version" $name) -}}
{{- end -}}
{{- end -}}
{{- if and $sandbox (not .Values.image.tag) (not .Values.sandbox.image.tag) (not .Values.sandbox.image.digest) -}}
{{- $problems = append $problems "which image of the sandbox? It takes image.tag, which is empty; set sandbox.image.tag or digest" -}}
{{- end -}}
{{- if .Values.podDisruptionBudget.enabled -}}
{{- $least := toString .Values.podDisruptionBudget.minAvailable -}}
{{- if or (eq $least "100%") (and (regexMatch "^[0-9]+$" $least) (ge (int $least) (int $facts.minimum))) -}}
{{- $problems = append $problems (printf "podDisruptionBudget.minAvailable is %s of %d gateways: no node could ever be drained" $least (int $facts.minimum)) -}}
{{- end -}}
{{- if and (eq $least "") (has (toString .Values.podDisruptionBudget.maxUnavailable) (list "0" "0%")) -}}
{{- $problems = append $problems "podDisruptionBudget.maxUnavailable is 0: no node could ever be drained" -}}
{{- end -}}
{{- end -}}
{{- $ours := list "LICENSE_GATEWAY_CONFIG" -}}
{{- $unseen := list -}}
{{- range .Values.extraEnv -}}
{{- if or (hasPrefix "LICENSE_GATEWAY__" .name) (has .name $ours) -}}
{{- $problems = append $problems (printf "extraEnv has %s, which would win over what this chart has checked; set it in config" .name) -}}
{{- end -}}
{{- if regexMatch "^OTEL_EXPORTER_OTLP_.*ENDPOINT$" .name -}}{{- $unseen = append $unseen (printf "extraEnv has %s" .name) -}}{{- end -}}
{{- end -}}
{{- range $name, $_ := .Values.telemetry.env -}}
{{- if regexMatch "^OTEL_EXPORTER_OTLP_.*ENDPOINT$" $name -}}{{- $unseen = append $unseen (printf "telemetry.env has %s" $name) -}}{{- end -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.extraEgress) -}}
{{- range $unseen -}}
{{- $problems = append $problems (printf "%s, and the NetworkPolicy would not let it through; set telemetry.otlp.endpoint, or networkPolicy.extraEgress as well" .) -}}
{{- end -}}
{{- end -}}
{{- if and (or $secrets.otlp.headersKey $secrets.otlp.caKey) (not $secrets.otlp.existingSecret) -}}
{{- $problems = append $problems "secrets.otlp names keys and no Secret; set secrets.otlp.existingSecret" -}}
{{- end -}}
{{- if regexMatch "^[a-z]+://[^/]*@" .Values.telemetry.otlp.endpoint -}}
{{- $problems = append $problems "telemetry.otlp.endpoint holds credentials, and would stand in the Deployment; use secrets.otlp.headersKey" -}}
{{- end -}}

{{- if $problems -}}
{{- fail (printf "\n\nlicense-gateway refuses these values:\n\n  - %s\n" (join "\n  - " ($problems | uniq))) -}}
{{- end -}}
{{- end }}
