"""Chat templates with the constructs of those that real models bring, each in words of its own."""

LLAMA_3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none and tools is defined %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Knowledge: December 2023\\nToday: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none and tools is defined %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

QWEN_2 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'Be of use.' }}{%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nBe of use.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or
           (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

QWEN_3 = """\
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string %}
        {%- set ns.multi_step = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role in ["user", "system"] %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last %}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
        {{- content.lstrip('\\n') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Roles must alternate user/assistant/user/assistant") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}{{- "[INST]" + system_message + "\\n\\n" }}
        {%- else %}{{- "[INST]" }}{%- endif %}
        {{- message["content"] + "[/INST]" + (user_messages | length) ~ "" }}
    {%- else %}{{- " " + message["content"]|trim + eos_token }}{%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception("Roles must alternate") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}
    {%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}
"""

PHI = """\
{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\\n'
+ message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content']
+ '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

CHATML = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system
Be of use<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

DEEPSEEK = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% set ns = namespace(is_first=false, system_prompt='', is_first_sp=true) %}
{%- for message in messages %}{%- if message['role'] == 'system' %}
{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}
{%- set ns.is_first_sp = false %}
{%- else %}{% set ns.system_prompt = ns.system_prompt ~ '\\n\\n' ~ message['content'] %}{%- endif %}{%- endif %}
{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}{% set content = message['content'] %}
{%- if message['role'] == 'user' %}{{ '<|User|>' + content }}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<|Assistant|>' + content + eos_token }}{%- endif %}{%- endfor -%}
{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% if thinking %}{{ '<think>\\n' }}{% endif %}{% endif %}
"""

COMMAND_R = """\
{% if documents %}
{% set tool_idx = namespace(value=0) %}
<|DOCS|>{% for doc in documents %}{{ tool_idx.value ~ ": " }}{% for key, value in doc.items() %}{{ key }}={{ value }}
{%- if not loop.last %}; {% endif %}{% endfor %}{% set tool_idx.value = tool_idx.value + 1 %}{% endfor %}
{% endif %}
{%- macro turn(role, text) -%}<|{{ role | upper }}|>{{ text }}<|END|>{%- endmacro -%}
{{ bos_token }}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}
{{- turn('system', messages[0].content) }}
{%- else %}{% set rest = messages %}{% endif %}
{%- for m in rest %}{{ turn('chatbot' if m.role == 'assistant' else m.role, m.content) }}{% endfor %}
{%- if add_generation_prompt %}<|CHATBOT|>{% endif %}"""

GENERATION = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}<|a|>{%- generation -%}{{ message.content + eos_token }}{%- endgeneration -%}
{%- else -%}<|{{ message.role[0] }}|>{{ message.content }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|a|>{%- endif -%}"""

LOOP_CONTROLS = """\
{% for message in messages %}
{% if message.role == 'system' %}{% continue %}{% endif %}
{% if loop.index > 20 %}{% break %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ loop.cycle('odd', 'even') }} {{ loop.previtem.role if loop.previtem is defined }}
{{ message.content | replace('\\n', ' ') | truncate(40) | title }}{{ ", " if not loop.last }}{% else %}nobody
{% endfor %}"""

FILTERS = """\
{%- set roles = messages | map(attribute='role') | unique | join(',') -%}
{{ roles }}|{{ messages | length }}|{{ messages | tojson(ensure_ascii=True, sort_keys=True) }}|
{%- for role, turns in messages | groupby('role') -%}{{ role }}:{{ turns | map(attribute='content') | join('/') }};
{%- endfor -%}
{{ (messages | last).content | indent(2) | wordwrap(30) | center(50) }}{{ '%s-%05.1f' | format('x', 3.14159) }}
{{- '{:>8}|{}'.format(messages[0].role, 2 ** 10) }}{{ [1, 2] + [3] }}{{ range(3) | list }}{{ 'ab' * 3 }}{{ 7 // 2 % 2 }}
{{- dict(a=1, b=none) | items | list }}{{ none | default('nothing', true) }}{{ messages[0].content[:3] ~ 1 ~ none }}
{%- filter upper %}so {{ 'it' }} is{% endfilter %}{% set block %}a {{ 1 + 1 }} b{% endset %}{{ block | trim }}
{%- raw %}{{ as it stands }}{% endraw %}{# nothing #}"""

RECURSIVE = """\
{%- macro schema(spec, depth=0) -%}
{%- if spec.type == 'object' -%}{ {%- for name, one in spec.properties.items() -%}
{{ '  ' * depth }}{{ name }}: {{ schema(one, depth + 1) }}{{ ', ' if not loop.last }}{%- endfor -%} }
{%- elif spec.type == 'array' -%}{{ schema(spec['items'], depth) }}[]
{%- elif spec.enum is defined -%}{{ spec.enum | map('tojson') | join(' | ') }}{%- else -%}{{ spec.type }}{%- endif -%}
{%- endmacro -%}
{%- for tool in tools or [] -%}
{%- set f = tool.function if tool.function is mapping else tool -%}
{{ f.name }}({{ schema(f.parameters) }}){{ "\\n" }}{%- endfor -%}
{%- for m in messages recursive -%}{{ m.role }}: {{ m.content }}{{ "\\n" }}{%- endfor -%}"""

DATED = """\
{{ strftime_now('%Y-%m-%d %A, week %W') }}{% call(day) with_date() %}{{ day }}{% endcall %}
{%- for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}""".replace(
    "{% call(day) with_date() %}{{ day }}{% endcall %}",
    "{% macro with_date() %}{{ caller(strftime_now('%d/%m')) }}{% endmacro %}"
    "{% call(day) with_date() %}<{{ day }}>{% endcall %}",
)

COLLECTION = {name.lower(): text for name, text in vars().copy().items() if name.isupper() and isinstance(text, str)}
